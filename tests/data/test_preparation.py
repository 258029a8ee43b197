"""Images prepared as a network's were when it was trained."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from tailorbird.data.decode import Decoder
from tailorbird.data.images import Normalisation
from tailorbird.data.preparation import preparation_of, renormalised
from tailorbird.data.sources import digits, folder, from_datasets
from tailorbird.errors import DataError


def photograph(height, width):
    """A smooth picture, and its PNG."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (7 + k)) + np.cos(columns / (5 + k)) for k in range(3)]
    pixels = (63 * (np.stack(waves, axis=-1) + 2)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Image.fromarray(pixels), file.getvalue()


@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_images_are_cut_and_scaled_as_timm_does_it(way):
    from timm.data import create_transform

    image, content = photograph(160, 200)
    theirs = create_transform(
        (3, 64, 64), interpolation=way, crop_pct=0.8, mean=(0.0,) * 3, std=(1.0,) * 3
    )(image)
    ours = torch.from_numpy(Decoder(3, (64, 64), way, 0.8)(content)).float() / 255
    uncut = torch.from_numpy(Decoder(3, (64, 64), way)(content)).float() / 255
    assert (ours - theirs).abs().mean() < 0.01 < 0.05 < (uncut - theirs).abs().mean()


def test_an_image_that_has_the_size_is_not_cut():
    image, content = photograph(64, 64)
    same = Decoder(3, (64, 64), "bicubic", 0.5)(content)
    assert np.array_equal(same, np.asarray(image).transpose(2, 0, 1))


def test_settings_that_change_no_image_leave_the_fingerprint():
    usual = Decoder(3, (64, 64))
    assert Decoder(3, (64, 64), "bilinear", 1.0).plain() == usual.plain() == [3, (64, 64)]
    assert Decoder(3, (64, 64), "bicubic").plain() != usual.plain()
    assert Decoder(3, (64, 64), "bilinear", 0.9).plain() != usual.plain()


def test_wrong_settings_are_told(tmp_path):
    with pytest.raises(DataError, match=r"crop_share: expected a share in \(0, 1\], got 1.5") as no:
        folder(tmp_path, crop_share=1.5, interpolation="spline")
    assert "interpolation: expected one of nearest, bilinear, bicubic, lanczos" in str(no.value)


class Told(nn.Module):
    def __init__(self, **configuration):
        super().__init__()
        self.pretrained_cfg = configuration


GOOD = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def test_what_networks_say_is_read_and_nonsense_is_not():
    import timm

    own = preparation_of(timm.create_model("vit_tiny_patch16_224"))
    assert own.normalisation == Normalisation((0.5,) * 3, (0.5,) * 3)
    assert (own.interpolation, own.crop_share) == ("bicubic", 0.9)
    assert preparation_of(nn.DataParallel(Told(**GOOD))).normalisation.std == (0.25,) * 3
    odd = preparation_of(Told(**GOOD, interpolation="random", crop_pct=2))
    assert (odd.interpolation, odd.crop_share) == (None, None)
    for wrong in ({}, {"mean": 3, "std": 4}, {**GOOD, "std": (0.0,) * 3}, {**GOOD, "mean": "a"}):
        assert preparation_of(Told(**wrong)) is None


def test_images_can_be_normalised_otherwise():
    data = from_datasets(TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20) % 2), workers=0)
    other = renormalised(data, Normalisation((0.5,) * 3, (0.25,) * 3))
    back = other.train.sample(4) * 0.25 + 0.5
    assert torch.allclose(back, data.train.images[[0, 4, 9, 13]], atol=1e-6)
    assert other.fingerprint != data.fingerprint and other.test is None
    with pytest.raises(DataError, match="a mean and a std for each of 1 channels, got 3"):
        renormalised(digits(), Normalisation((0.5,) * 3, (0.25,) * 3))
