"""One step of a supernet's training: forward and backward of its networks, on parts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tailorbird.errors import TrainingError
from tailorbird.supernet.network import resize
from tailorbird.supernet.samplers import RESOLUTION
from tailorbird.supernet.schemes.scheme import Member, Step
from tailorbird.supernet.train_state import TrainState
from tailorbird.train.losses import Seen, total
from tailorbird.train.mixing import Mixer
from tailorbird.train.precision import autocast, reseed
from tailorbird.train.seeds import derive
from tailorbird.train.world import World

_DROPOUT, _MIXING = 2, 3
"""What a derived seed is for; the loop has others."""


class Stepper:
    """Makes steps.

    A step's images are split into equal parts, each of which is mixed, normalised and dropped out
    on its own; the parts are shared out among the processes. What is random follows from seed, step
    and part, so that it is the same whoever works on a part.

    Args:
        state: what changes.
        world: who works on the parts.
        parts: of every batch, in all; a multiple of the processes.
        sizes: of the images in pixels, by value of the resolution's gene.
        layout: of the images in memory.
        precision: of forward passes.
        mixer: of images and labels, if they are to be mixed.
        clip_norm: gradients are scaled down to this norm.
        seed: the run's.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        world: World,
        parts: int,
        sizes: Sequence[int],
        layout: torch.memory_format,
        precision: str,
        mixer: Mixer | None,
        clip_norm: float | None,
        seed: int,
    ) -> None:
        self.state, self.world, self.parts = state, world, parts
        self.sizes, self.layout, self.precision = sizes, layout, precision
        self.mixer, self.clip_norm, self.seed = mixer, clip_norm, seed
        self.parameters = list(state.module.parameters())
        self.dropouts = [part for part in state.module.modules() if isinstance(part, nn.Dropout)]

    def make(self, step: Step, images: Tensor, labels: Tensor | None) -> Tensor:
        """Make the state's next step.

        Args:
            step: what to train.
            images: (n, C, H, W), this process's share of the batch.
            labels: (n,), or None.

        Returns:
            (networks + 1,) on the device, the same in all processes: the loss of each network, the
            mean of the parts; then the sum of all pixels, which isn't finite where a pixel isn't.
        """
        state, world = self.state, self.world
        for action in step.before:
            state.act(action)
        state.module.train()
        own = self.parts // world.size
        known = [None] * own if labels is None else labels.tensor_split(own)
        figures: Tensor | None = None
        for place, (some, named) in enumerate(zip(images.tensor_split(own), known, strict=True)):
            found = self._part(step, world.rank * own + place, some, named)
            figures = found if figures is None else figures + found
        assert figures is not None
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        world.sum([*gradients, figures])
        state.net.advance(step.rate, self.clip_norm)
        return figures

    def _part(self, step: Step, part: int, images: Tensor, labels: Tensor | None) -> Tensor:
        """Add a part's share of the gradients; its share of the figures."""
        number, device = self.state.net.step, self.world.device
        brightness = images.sum()
        if self.mixer is not None:
            mixing = derive(self.seed, _MIXING, number, part)
            images, labels = self.mixer(images, labels, seed=mixing)
        reseed(device, derive(self.seed, _DROPOUT, number, part))
        losses = self._gradients(step, images, labels)
        return torch.stack([*[loss / self.parts for loss in losses], brightness])

    def _gradients(self, step: Step, images: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Add up the weighted gradients of the step's networks; returns their losses.

        One network's activations are freed before the next one runs, so a step takes the memory of
        its largest network.
        """
        sized: dict[int, Tensor] = {}
        taught: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        full: Tensor | None = None
        for member in step.networks:
            size = self.sizes[int(member.genome[RESOLUTION])]
            if size not in sized:
                sized[size] = resize(images, size).contiguous(memory_format=self.layout)
            if member.teacher == "frozen" and size not in taught:
                taught[size] = self._ask_teacher(sized[size])
            logits = self._forward(member, sized[size])
            known = {"full": full, "frozen": taught.get(size), None: None}[member.teacher]
            seen = Seen(logits, labels, {} if known is None else {"output": known}, {})
            loss = total(member.terms, seen)
            if loss is None:
                raise TrainingError(
                    f"step {step.phase}: no term of a network's loss applies; the scheme asks for "
                    "a teacher that isn't there, or for labels where there are none",
                    step=self.state.net.step,
                )
            torch.autograd.backward(loss * (member.weight / self.parts))
            losses.append(loss.detach())
            full = logits.detach() if full is None else full
        return losses

    def _forward(self, member: Member, images: Tensor) -> Tensor:
        module = self.state.module
        module.activate(member.genome)
        for part in self.dropouts:
            part.train(member.dropout)
        with autocast(self.world.device, self.precision):
            logits = module(images)
        return cast("Tensor", logits.float())

    @torch.no_grad()
    def _ask_teacher(self, images: Tensor) -> Tensor:
        teacher = self.state.teacher
        if teacher is None:
            raise TrainingError(
                "a network learns from a frozen teacher, and the scheme has frozen none",
                step=self.state.net.step,
            )
        teacher.activate(teacher.largest())
        with autocast(self.world.device, self.precision):
            return cast("Tensor", teacher(images).float())
