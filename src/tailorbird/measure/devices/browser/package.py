"""Where onnxruntime-web is installed, and what of it a page needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tailorbird.errors import ConfigError

NAME = "onnxruntime-web"
KNOWN = "1.23 to 1.30"
"""Versions that are known to work."""

ENTRIES = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
"""Provider -> the module that a page loads for it."""

_SERVED = re.compile(r"ort(-wasm)?[a-z.-]*\.(mjs|wasm)")
_NPM_LIMIT_S = 20
_WAY_OUT = (
    f"run 'npm install {NAME}' in the folder of the job ({KNOWN} are known to work), or give its "
    "folder as package"
)


@dataclass(frozen=True)
class Package:
    """An installed onnxruntime-web.

    Args:
        folder: of its ``package.json``.
        version: as that file has it.
    """

    folder: Path
    version: str

    @property
    def served(self) -> dict[str, Path]:
        """Names and paths of the files that a page may load."""
        found = sorted((self.folder / "dist").iterdir())
        return {one.name: one for one in found if _SERVED.fullmatch(one.name) and one.is_file()}


def find_package(given: Path | None, *, provider: str) -> Package:
    """The package in a folder; or that in ``node_modules`` of the current folder or one above it.

    Where neither has it, npm is asked for its global folder.

    Args:
        given: the package's own folder.
        provider: that it has to have, a key of `ENTRIES`.

    Raises:
        ConfigError: when there is none, or it lacks the provider.
    """
    folder = given.expanduser() if given else _installed()
    if folder is None:
        raise ConfigError(f"Browser: {NAME} is not installed; {_WAY_OUT}")
    try:
        about = json.loads((folder / "package.json").read_bytes())
        name, version = about["name"], about["version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"Browser: package {folder} holds no readable package.json; {_WAY_OUT}"
        ) from error
    if name != NAME or not re.fullmatch(r"\d+\.\d+\.\d+[\w.+-]{0,60}", str(version)):
        raise ConfigError(f"Browser: package {folder} is no {NAME}; {_WAY_OUT}")
    if not (folder / "dist" / ENTRIES[provider]).is_file():
        raise ConfigError(
            f"Browser: {NAME} {version} in {folder} has no dist/{ENTRIES[provider]}; {_WAY_OUT}"
        )
    return Package(folder, version)


def _installed() -> Path | None:
    here = Path.cwd()
    roots = [folder / "node_modules" for folder in (here, *here.parents)]
    for root in roots:
        if (root / NAME / "package.json").is_file():
            return root / NAME
    shared = _global_root()
    return shared / NAME if shared and (shared / NAME / "package.json").is_file() else None


def _global_root() -> Path | None:
    """Where npm installs for all; a question to npm that reaches out to nobody."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    try:
        said = subprocess.run(
            [npm, "root", "--global"], capture_output=True, timeout=_NPM_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(said.stdout.decode(errors="replace").strip())
