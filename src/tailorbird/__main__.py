"""``python -m tailorbird`` is the command line."""

from tailorbird.cli import app

if __name__ == "__main__":
    app()
