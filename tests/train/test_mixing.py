import numpy as np
import pytest
import torch

from tailorbird.train.mixing import Mixer

LABELS = torch.arange(6)
IMAGES = LABELS.float().view(6, 1, 1, 1).expand(6, 1, 20, 20).contiguous()
"""Each image is its class all over, so that pixels tell whose they are."""


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_gives_labels_the_shares_of_the_pixels(seed):
    before = np.random.get_state()[1].copy()
    mixed, soft = Mixer(mixup=0.0, cutmix=1.0, classes=6)(IMAGES, LABELS, seed=seed)
    shares = torch.stack([(mixed == label).float().mean((1, 2, 3)) for label in LABELS], 1)
    assert torch.allclose(soft, shares, atol=1e-6)
    assert ((shares > 0).sum(1) <= 2).all()
    assert (np.random.get_state()[1] == before).all()


def test_mixup_weighs_labels_as_it_weighs_images():
    mixed, soft = Mixer(mixup=1.0, cutmix=0.0, classes=6)(IMAGES, LABELS, seed=0)
    assert torch.allclose(mixed[:, 0, 0, 0], soft @ LABELS.float(), atol=1e-5)


def test_an_odd_image_is_left_out_and_no_labels_stay_none():
    mixer = Mixer(mixup=0.0, cutmix=1.0, classes=6)
    mixed, soft = mixer(IMAGES[:5], None, seed=0)
    assert (len(mixed), soft) == (4, None)
    assert mixer(IMAGES[:1], LABELS[:1], seed=0) == (pytest.approx(IMAGES[:1]), LABELS[:1])
