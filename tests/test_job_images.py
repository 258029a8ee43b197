"""A job's images, prepared as the teacher's were where the job leaves that open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from tailorbird.config import house_job
from tailorbird.config.house_job import check
from tailorbird.config.reader import read
from tailorbird.data.images import IMAGENET, Normalisation
from tailorbird.data.sources import from_datasets
from tailorbird.pipeline import Job
from tailorbird.pipeline.job import identity

HERE = __name__
OWN = Normalisation((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


class Net(nn.Sequential):
    """Says, as timm's networks do, how its images were prepared."""

    pretrained_cfg = {  # noqa: RUF012
        **{"mean": OWN.mean, "std": OWN.std, "interpolation": "bicubic", "crop_pct": 0.875},
    }


def network(channels=3):
    torch.manual_seed(0)
    return Net(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def arrays():
    return TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20) % 2)


def finished():
    return from_datasets(arrays())


@pytest.fixture
def photographs(tmp_path):
    """Two classes of five pictures of 12 x 16 pixels."""
    drawn = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            pixels = drawn.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path


def job(folder, data, *, channels=3):
    text = yaml.safe_dump(
        {
            "teacher": {"model": f"{HERE}:network", "arguments": {"channels": channels}},
            "data": data,
            "targets": [{"name": "edge", "limits": {"latency": "0.5x"}}],
        }
    )
    return Job(**house_job.build(check(read(text), folder=folder), folder=folder))


def made_from(asked):
    return identity(
        teacher=asked.teacher,
        donors={},
        data=asked.data,
        options=asked.options,
        training={},
        seed=0,
    )


def test_what_the_job_leaves_open_is_taken_told_and_written_out(photographs):
    said = {"kind": "folder", "root": "images", "image_size": 8}
    asked = job(photographs, said)
    assert asked.data.normalisation == OWN
    [note] = asked.notes
    assert "interpolation: bicubic, crop_share: 0.875, normalisation: {mean: [0.5, 0.4" in note
    written = asked.description["data"]
    assert written["normalisation"] == {"mean": list(OWN.mean), "std": list(OWN.std)}
    assert (written["interpolation"], written["crop_share"]) == ("bicubic", 0.875)
    again, from_written = job(photographs, said), job(photographs, dict(written))
    assert made_from(asked) == made_from(again) == made_from(from_written)
    assert from_written.notes == () and from_written.description["data"] == written


def test_what_the_job_says_stays(photographs):
    asked = job(
        photographs,
        {
            "kind": "folder",
            "root": "images",
            "image_size": 8,
            "normalisation": "imagenet",
            "crop_share": 1.0,
        },
    )
    assert asked.data.normalisation == IMAGENET
    written = asked.description["data"]
    assert (written["crop_share"], written["interpolation"]) == (1.0, "bicubic")


def test_images_that_are_not_scaled_are_only_normalised(photographs):
    asked = job(photographs, {"kind": "folder", "root": "images"})
    assert asked.data.normalisation == OWN
    assert asked.description["data"]["crop_share"] is None


def test_images_from_code_are_normalised_unless_they_come_finished(tmp_path):
    assert job(tmp_path, {"kind": f"{HERE}:arrays"}).data.normalisation == OWN
    asked = job(tmp_path, {"kind": f"{HERE}:finished"})
    assert asked.data.normalisation == IMAGENET and asked.notes == ()
    assert job(tmp_path, dict(asked.description["data"])).data.normalisation == IMAGENET


def test_images_of_other_channels_keep_their_normalisation(photographs):
    asked = job(photographs, {"kind": "folder", "root": "images", "channels": 1}, channels=1)
    assert asked.data.normalisation == Normalisation((0.5,), (0.5,))
    assert asked.notes == () and asked.description["data"]["normalisation"] is None
