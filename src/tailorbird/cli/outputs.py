"""Files that options name, tried before time is spent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from tailorbird.errors import ConfigError, StoreError


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Try to write where results are to go, so that no search is lost for want of a folder.

    Args:
        paths: option -> file; its folder is made when missing, what is there stays as it is.

    Raises:
        ConfigError: where two options name one file, or an option a folder.
        StoreError: where a file could not be written.
    """
    given = {option: path for option, path in paths.items() if path is not None}
    problems, names = [], dict[Path, str]()
    for option, path in given.items():
        other = names.setdefault(path.absolute(), option)
        if other != option:
            problems.append(f"{option} and {other}: expected different files, got {path} twice")
        if path.is_dir():
            problems.append(f"{option}: expected a file to write, got the folder {path}")
    if problems:
        raise ConfigError(problems)
    for path in given.values():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part"):
                pass
        except OSError as error:
            raise StoreError(
                f"can't write {path}: {error.strerror or error}; choose another folder (nothing "
                "has been searched yet)"
            ) from error
