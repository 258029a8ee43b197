"""A user's folder: a tiny space, a job file, and images that a module beside it makes."""

from __future__ import annotations

import sys
import textwrap

import pytest
import yaml

from tailorbird.config import supernet_job
from tailorbird.pipeline import supernet_import
from tailorbird.supernet import architecture
from tests.supernet.tiny import tiny_space

SPACE = "tiny-mbconv"
MODULE = """\
    import torch
    from torch.utils.data import TensorDataset

    def images(count=72, classes=2, labels=True):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 120, (count, 3, 12, 12), generator=generator)
        answers = torch.arange(count) % classes
        for label in range(classes):
            pixels[answers == label, :, 3 * label : 3 * label + 3] += 100
        return TensorDataset(pixels.to(torch.uint8), answers)
"""


def make_folder(tmp_path, monkeypatch):
    """Write the module; make the tiny space one of those that there are."""
    (tmp_path / "tinyimages.py").write_text(textwrap.dedent(MODULE))
    spaces = tmp_path / "spaces"
    spaces.mkdir()
    for file in architecture._FOLDER.iterdir():
        (spaces / file.name).write_text(file.read_text())
    tiny_space(spaces, resolutions=(32, 40))
    architecture._compiled.cache_clear()
    monkeypatch.setattr(architecture, "_FOLDER", spaces)
    for module in (architecture, supernet_job, supernet_import):
        monkeypatch.setattr(module, "SPACES", (*architecture.SPACES, SPACE))
    return tmp_path


def job(folder, *, without=(), **changed):
    """Write ``job.yaml``: two short epochs of the cheapest scheme."""
    content = {
        "space": SPACE,
        "data": {"kind": "tinyimages:images", "crop_padding": 1},
        "scheme": {"kind": "bignas", "epochs": 2, "learning_rate": 0.05, "networks": 2},
        "recipe": {"batch_size": 16},
        "run": "run",
    }
    content |= changed
    path = folder / "job.yaml"
    kept = {key: value for key, value in content.items() if key not in without}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # what a job appends is gone afterwards
    yield make_folder(tmp_path, monkeypatch)
    architecture._compiled.cache_clear()
    sys.modules.pop("tinyimages", None)
