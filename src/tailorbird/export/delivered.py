"""What a shipped file computes: the network, and what its user would else have to do around it."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from tailorbird.data.images import Normalisation
from tailorbird.export.options import ExportOptions


class Delivered(nn.Module):
    """A network with normalisation before it, softmax after it, or both.

    Args:
        network: normalised images (n, C, H, W) -> logits (n, classes).
        normalisation: what it expects.
        options: what of it the file does itself.

    Example:
        >>> scale = Normalisation((0.5,), (0.25,))
        >>> network = Delivered(nn.Flatten(), scale, ExportOptions(normalise=True, softmax=True))
        >>> network(torch.tensor([[[[0.5, 0.5]]]]))
        tensor([[0.5000, 0.5000]])
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, normalisation: Normalisation, options: ExportOptions
    ) -> None:
        super().__init__()
        self.network, self.options = network, options
        mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        self.register_buffer("scale", (1 / std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W), in [0, 1] where they are normalised here, to what the file answers.

        Returns:
            Logits (n, classes), or probabilities of the same shape.
        """
        if self.options.normalise:
            images = images * self.scale + self.shift
        answers: Tensor = self.network(images)
        return answers.softmax(1) if self.options.softmax else answers


def delivered(
    network: nn.Module, normalisation: Normalisation, options: ExportOptions
) -> nn.Module:
    """What the file is to compute; the network itself where nothing is to be in it beside that."""
    if not (options.normalise or options.softmax):
        return network
    return Delivered(network, normalisation, options)


def as_given(images: Tensor, normalisation: Normalisation, options: ExportOptions) -> Tensor:
    """Normalised images (n, C, H, W) the way the file takes them.

    Example:
        >>> scale = Normalisation((0.5,), (0.25,))
        >>> as_given(torch.full((1, 1, 1, 1), 2.0), scale, ExportOptions(normalise=True)).item()
        1.0
    """
    if not options.normalise:
        return images
    mean, std = images.new_tensor(normalisation.mean), images.new_tensor(normalisation.std)
    return images * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)


def about(normalisation: Normalisation, options: ExportOptions) -> dict[str, str]:
    """How images in [0, 1] become the file's input, and what is in the file beside the network.

    ``mean`` and ``std`` are what is left to do outside: 0 and 1 where the file normalises itself,
    so that the same few lines run every file.
    """
    channels = len(normalisation.mean)
    outside = Normalisation.identity(channels) if options.normalise else normalisation
    found = {
        "tailorbird.mean": json.dumps(outside.mean),
        "tailorbird.std": json.dumps(outside.std),
    }
    if options.normalise:
        inside = {"mean": normalisation.mean, "std": normalisation.std}
        found["tailorbird.normalised_inside"] = json.dumps(inside)
    if options.softmax:
        found["tailorbird.output"] = "probabilities"
    return found
