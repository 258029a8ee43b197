"""``python -m tailorbird`` is the command line."""

from tailorbird.cli import app

app()
