"""Transformers go through the same code: "spatial" is the token grid."""

from contextlib import nullcontext

import pytest
import timm
import torch

from tailorbird.data.sources import digits
from tailorbird.graph.trace import trace
from tailorbird.house.build import build_house
from tailorbird.house.options import HouseOptions
from tailorbird.house.store import HouseStore
from tailorbird.progress import Silent


def vit(width):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=4,
            in_chans=1,
            num_classes=10,
            depth=3,
            num_heads=2,
            embed_dim=width,
        ).eval()


@pytest.mark.slow
def test_a_vision_transformer_gets_a_house_from_another(tmp_path):
    house = build_house(
        trace(vit(48), (1, 16, 16)),
        {"narrow": trace(vit(32), (1, 16, 16))},
        digits(seed=0, image_size=16),
        HouseOptions(teacher_blocks=5, donor_blocks=4, pruned=3, epochs=0.1),
        seed=0,
        store=HouseStore(tmp_path),
        stage=lambda _: nullcontext(),
        progress=Silent(),
    )
    assert house.rejections["stopped in distillation"] == 0
    assert {a.origin for a in house.choices} >= {"identity", "narrow"}
    fewer = {a.variant for a in house.choices if a.origin == "teacher" and a.as_is}
    assert fewer >= {"1 of 3", "2 of 3", "left out"}
    tokens = {b.key: b for b in house.sample.blocks.values() if len(b.in_shape) == 2}
    assert tokens
    for choice in house.choices:
        block = house.sample.blocks[choice.block]
        output = house.modules[choice.name](torch.zeros(2, *block.in_shape))
        assert tuple(output.shape[1:]) == block.out_shape
