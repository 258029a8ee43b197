"""A user's folder: a tiny space, a job file, and images that a module beside it makes."""

from __future__ import annotations

import sys
import textwrap

import pytest
import yaml

from tests.supernet.tiny import tiny_space

SPACE = "tiny-mbconv"
FILE = f"{SPACE}.json"
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


def job(folder, *, without=(), **changed):
    """Write ``job.yaml``: two short epochs of the cheapest scheme."""
    content = {
        "space": FILE,
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
    (tmp_path / "tinyimages.py").write_text(textwrap.dedent(MODULE))
    tiny_space(tmp_path, resolutions=(32, 40))
    yield tmp_path
    sys.modules.pop("tinyimages", None)
