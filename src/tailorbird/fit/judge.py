"""The last word on networks: what they answer on images that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from tailorbird.data.images import ImageData, Normalisation, Split
from tailorbird.data.resizing import AtSize, resized
from tailorbird.device import Run
from tailorbird.export.delivered import as_given
from tailorbird.export.options import ExportOptions
from tailorbird.fit.candidates import Network
from tailorbird.task import CLASSIFICATION, Score, Task
from tailorbird.train.evaluate import predictions, score
from tailorbird.train.precision import compute_device

SMALLEST = 1e-12
"""Probabilities are taken as this at least, so that their logarithms are finite."""

PARITY_IMAGES = 64
"""Validation images that an exported file is compared to its network on."""


class Judge:
    """Judges finished networks on the test split, or on those that choose where there is none.

    The test split is read here and nowhere else: nothing is chosen by what it says.

    Args:
        data: the images.
        reference: what to agree with where they have no labels.
        task: what outputs mean.
        choosing: judge on the images that are chosen by (`ImageData.choosing`), not on these.
    """

    def __init__(
        self,
        data: ImageData,
        reference: Network,
        task: Task = CLASSIFICATION,
        *,
        choosing: bool = False,
    ) -> None:
        self.data, self.reference, self.task = data, reference, task
        self.split: Split = data.choosing if choosing else data.test or data.choosing
        self._known: dict[int | None, Tensor] = {}

    def accuracy(self, network: Network) -> float:
        """Share of right answers, or of those that agree with the reference without labels."""
        return self.score(network).value

    def score(
        self, network: Network, *, images: int | None = None, split: Split | None = None
    ) -> Score:
        """The same, and the mean loss.

        Args:
            network: judged.
            images: at most so many; the choice is the same for every network.
            split: other images, with labels.
        """
        split = split or self.split
        return score(
            _at_size(network),
            split,
            answers=None if split.labelled else self._answers(images),
            device=compute_device(),
            limit=images,
            task=self.task,
        )

    def _answers(self, images: int | None) -> Tensor:
        """What the reference says, where there are no labels."""
        if images not in self._known:
            self._known[images] = predictions(
                _at_size(self.reference),
                self.split,
                device=compute_device(),
                limit=images,
                task=self.task,
            )
        return self._known[images]


@dataclass(frozen=True)
class Accuracies:
    """A student's accuracies.

    Args:
        before: as it was before it was trained further, if it was.
        after: as it is shipped.
        validation: the same and the loss, on the images that are chosen by.
        compared: the same on the images on which networks compare that were trained apart, where
            these are others.
    """

    before: float | None
    after: float
    validation: Score
    compared: Score | None = None


class Judges:
    """Accuracies of students and of the reference, each computed once and when it is needed.

    Args:
        data: the images.
        reference: makes the reference.
        task: what outputs mean.
        comparing: gives the images on which networks compare that were trained apart; those that
            are chosen by where ``None``.
    """

    def __init__(
        self,
        data: ImageData,
        reference: Callable[[], Network],
        task: Task,
        comparing: Callable[[], Split] | None = None,
    ) -> None:
        self._data, self._make, self._task = data, reference, task
        self._comparing = comparing or (lambda: data.choosing)
        self._found: dict[Hashable, Accuracies] = {}
        self._references: dict[int | None, float] = {}
        self._validation: dict[tuple[Hashable, int | None], Score] = {}
        self._compared: dict[tuple[Hashable, int | None], Score] = {}

    def reference(self, images: int | None = None) -> float:
        """The reference's accuracy, as `Accuracies.after`, on so many images at most."""
        if images not in self._references:
            self._references[images] = self._last.score(self._network, images=images).value
        return self._references[images]

    def validation(self, key: Hashable, network: Network, *, images: int | None = None) -> Score:
        """A network's score on the images that are chosen by; equal ones have equal keys."""
        key = key, images
        if key not in self._validation:
            self._validation[key] = self._choosing.score(network, images=images)
        return self._validation[key]

    def compared(self, key: Hashable, network: Network, *, images: int | None = None) -> Score:
        """As `validation`, on the images on which networks compare that were trained apart."""
        split = self._comparing()
        if split is self._data.choosing:
            return self.validation(key, network, images=images)
        key = key, images
        if key not in self._compared:
            self._compared[key] = self._choosing.score(network, images=images, split=split)
        return self._compared[key]

    def of(
        self,
        key: Hashable,
        network: Network,
        *,
        before: Network | None = None,
        images: int | None = None,
    ) -> Accuracies:
        """Accuracies of what was shipped.

        Args:
            key: equal for equal files.
            network: the file, as something that answers.
            before: the network before its training, if there was any.
            images: of each split at most.
        """
        if key not in self._found:
            validation = self.validation(key, network, images=images)
            after = validation.value
            if self._data.test is not None:
                after = self._last.score(network, images=images).value
            earlier = None if before is None else self._last.accuracy(before)
            compared = self.compared(key, network, images=images)
            self._found[key] = Accuracies(
                earlier, after, validation, None if compared is validation else compared
            )
        return self._found[key]

    def some(self, network: Network, images: int) -> float:
        """Accuracy of a network or a file, on so many validation images at most."""
        return self._choosing.score(network, images=images).value

    @cached_property
    def _network(self) -> Network:
        return self._make()

    @cached_property
    def _last(self) -> Judge:
        return Judge(self._data, self._network, self._task)

    @cached_property
    def _choosing(self) -> Judge:
        return Judge(self._data, self._network, self._task, choosing=True)


class Answering(nn.Module):
    """An exported file as a network: images (n, C, H, W) to what it answers where it is run.

    Args:
        run: runs the file.
        path: of the file.
        normalisation: of the images that it is given.
        options: what of the network's surroundings is in the file; probabilities become their
            logarithms, so that a loss of logits is the same.
    """

    def __init__(
        self, run: Run, path: Path, normalisation: Normalisation, options: ExportOptions
    ) -> None:
        super().__init__()
        self._run, self._path = run, path
        self._normalisation, self._options = normalisation, options

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (n, ...), on the images' device."""
        given = as_given(images, self._normalisation, self._options)
        outputs = torch.from_numpy(self._run(self._path, given.cpu().numpy())).to(images.device)
        return outputs.clamp_min(SMALLEST).log() if self._options.softmax else outputs


def judged_on(data: ImageData) -> str:
    """What the images are that networks are judged on, in words."""
    if data.test is not None:
        return "test images"
    name = "validation" if data.choosing is data.validation else "holdout"
    return f"{name} images, also used to choose"


def parity_images(data: ImageData, input_shape: tuple[int, ...]) -> Tensor:
    """The first validation images (n, *input_shape), resized where they have another size."""
    split = data.validation
    images, _ = next(iter(split.batches(min(PARITY_IMAGES, len(split)))))
    return resized(images, input_shape)


def _at_size(network: Network) -> AtSize:
    return AtSize(network.module, network.input_shape)
