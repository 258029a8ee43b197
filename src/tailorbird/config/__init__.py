"""YAML files as checked records and built components; and jobs to start from.

Nothing is imported here, so that printing a job needs no heavy package.
"""

from importlib.resources import files


def template(name: str) -> str:
    """The ``"job"`` that ``tailorbird init`` prints, or the ``"supernet"``'s; they run as they are.

    Example:
        >>> template("job").startswith("# A Tailorbird job.")
        True
    """
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
