"""Spaces small enough to train in a test, and images to train on."""

from __future__ import annotations

import json
from functools import partial

import torch

from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.supernet.kinds.table import KINDS
from tailorbird.supernet.layout import compile_space
from tailorbird.supernet.network import build_supernet

BLOCKS = {
    "mbconv": {
        "out_channels": 8,
        "kernel": {"each": "k", "values": [3, 5]},
        "expand": {"each": "e", "values": [2, 3, 5]},
        "se": True,
        "activation": "h_swish",
    },
    "bottleneck": {
        "out_channels": 16,
        "kernel": 3,
        "expand": {"each": "e", "values": [0.5, 0.75, 1.25]},
        "activation": "relu",
    },
    "transformer_block": {
        "heads": {"each": "h", "values": [1, 2, 3]},
        "head_channels": 4,
        "expand": {"each": "e", "values": [1.5, 2, 3]},
        "activation": "gelu",
    },
}


def tiny_space(tmp_path, kind="mbconv", resolutions=(8, 12), classes=2):
    """A stem, a stage of one or two elastic blocks, a classifier.

    Kinds are those of `BLOCKS`; transformers cut images into patches of 4 pixels and have an
    elastic embedding (``w``) too.
    """
    stage = {"stage": 1, "name": "blocks", "first": 0, "blocks": 2, "kind": kind}
    stage |= {"depth": {"gene": "d1", "values": [1, 2]}, "stride": 1, **BLOCKS[kind]}
    stem = {"name": "first_conv", "kind": "conv", "out_channels": 8, "kernel": 3, "stride": 2}
    content = {
        "resolutions": list(resolutions),
        "genes": {"d1": [1, 2]},
        "official": {"ks": "kernel", "e": "expand", "d": ["d1"]},
        "layers": [
            {**stem, "activation": "relu"},
            stage,
            {"name": "global_avg_pool", "kind": "global_avg_pool"},
            {"name": "classifier", "kind": "linear", "out_channels": classes},
        ],
    }
    if kind != "mbconv":
        del content["official"]["ks"]
    if kind == "transformer_block":
        embedding = {"gene": "w", "values": [8, 12, 16]}
        patches = {"name": "first", "kind": "patch_embed", "out_channels": embedding, "stride": 4}
        content["layers"][0] = patches
        content["layers"][2] = {"name": "token_mean", "kind": "token_mean"}
        content["genes"]["w"] = [8, 12, 16]
        content["official"] |= {"h": "heads", "w": ["w"]}
        content |= {"initial_std": 0.2, "norm_epsilon": 1e-6}
    (tmp_path / f"tiny-{kind}.json").write_text(json.dumps(content))
    remade = partial(tiny_space, tmp_path, kind, classes=classes)
    return compile_space(f"tiny-{kind}", content, None, KINDS, remade)


def tiny_supernet(tmp_path, kind="mbconv", seed=0, dropout=0.0, **options):
    generator = torch.Generator().manual_seed(seed)
    space = tiny_space(tmp_path, kind, **options)
    net = build_supernet(space, dropout=dropout, generator=generator)
    with torch.no_grad():  # as if trained for a while: every weight has a meaning of its own
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point() and value.ndim == 1:
                noise = 0.2 * torch.rand(value.shape, generator=generator)
                value.add_(noise if "running_var" in name else noise - 0.1)
    return net


def stripes(images=48, size=12, seed=0, labelled=True):
    """Two classes: the brighter half is at the top or at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (images, 3, size, size), generator=generator)
    labels = torch.arange(images) % 2
    pixels[labels == 0, :, : size // 2] += 80
    pixels[labels == 1, :, size // 2 :] += 80
    norm = Normalisation((0.4,) * 3, (0.2,) * 3)
    split = TensorSplit(pixels.to(torch.uint8), labels if labelled else None, norm, crop_padding=1)
    cut = images - images // 4
    return ImageData(
        train=split.take(torch.arange(cut)),
        validation=split.take(torch.arange(cut, images)),
        test=None,
        classes=None,
        normalisation=norm,
        input_shape=(3, size, size),
        labelled=labelled,
        name="stripes",
    )
