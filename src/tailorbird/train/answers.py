"""The teacher as the training loop asks it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.errors import ConfigError
from tailorbird.train.precision import autocast, lay_out, resolve
from tailorbird.train.recipe import Recipe

Teacher: TypeAlias = Callable[[Tensor], "Mapping[str, Tensor] | Tensor"]
"""Images (n, C, H, W) to logits, or to activations by name with the logits as ``"output"``."""


class Answers(nn.Module):
    """A frozen copy of the teacher on the device, answering with a mapping.

    Args:
        teacher: a module is copied and put in eval mode; another callable is used as it is.
        example: two images (2, C, H, W) on the device, for a dry run.
    """

    def __init__(
        self, teacher: Teacher, recipe: Recipe, device: torch.device, example: Tensor
    ) -> None:
        super().__init__()
        self.device = device
        self.layout = torch.contiguous_format
        network = teacher if isinstance(teacher, nn.Module) else None
        self.precision = resolve(recipe.precision, device, network)
        self.ask: Teacher = teacher
        if network is not None:
            own = copy_network(network).to(device).eval().requires_grad_(False)
            if recipe.channels_last:
                self.layout = lay_out(own, example)
            self.ask = own

    def answer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Activations by name, without gradients.

        Raises:
            ConfigError: when there is no ``"output"`` among them.
        """
        with torch.no_grad(), autocast(self.device, self.precision):
            given = self.ask(images.contiguous(memory_format=self.layout))
        answers = {"output": given} if isinstance(given, Tensor) else given
        if "output" not in answers:
            known = ", ".join(sorted(answers)) or "nothing"
            raise ConfigError(f"the teacher has to give its logits as 'output'; it gives {known}")
        return answers

    def forward(self, images: Tensor) -> Tensor:
        """The logits alone."""
        return self.answer(images)["output"]

    def in_float32(self) -> Answers:
        """The same teacher (shared weights) without autocast."""
        other = copy.copy(self)
        other.precision = "float32"
        return other
