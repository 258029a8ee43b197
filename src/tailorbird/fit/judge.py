"""The last word on networks: what they answer on images that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from tailorbird.data.images import ImageData, Split
from tailorbird.data.resizing import AtSize, resized
from tailorbird.fit.candidates import Made, Network
from tailorbird.task import CLASSIFICATION, Score, Task
from tailorbird.train.evaluate import predictions, score
from tailorbird.train.precision import compute_device

PARITY_IMAGES = 64
"""Validation images that an exported file is compared to its network on."""


class Judge:
    """Judges finished networks on the test split, or on validation images where there is none.

    The test split is read here and nowhere else: nothing is chosen by what it says.

    Args:
        data: the images.
        reference: what to agree with where they have no labels.
        task: what outputs mean.
    """

    def __init__(self, data: ImageData, reference: Network, task: Task = CLASSIFICATION) -> None:
        self.data, self.reference, self.task = data, reference, task
        self.split: Split = data.test or data.validation

    def accuracy(self, network: Network) -> float:
        """Share of right answers, or of those that agree with the reference without labels."""
        return self.score(network).value

    def score(self, network: Network) -> Score:
        """The same, and the mean loss."""
        return score(
            _at_size(network),
            self.split,
            answers=self._answers,
            device=compute_device(),
            task=self.task,
        )

    @cached_property
    def _answers(self) -> Tensor | None:
        """What the reference says, where there are no labels."""
        if self.split.labelled:
            return None
        network = _at_size(self.reference)
        return predictions(network, self.split, device=compute_device(), task=self.task)


@dataclass(frozen=True)
class Accuracies:
    """A student's accuracies.

    Args:
        before: as it was before it was trained further, if it was.
        after: as it is shipped.
        validation: the same and the loss, on the images that are chosen by.
    """

    before: float | None
    after: float
    validation: Score


class Judges:
    """Accuracies of students and of the reference, each computed once and when it is needed.

    Args:
        data: the images.
        reference: makes the reference.
        task: what outputs mean.
    """

    def __init__(self, data: ImageData, reference: Callable[[], Network], task: Task) -> None:
        self._data, self._make, self._task = data, reference, task
        self._found: dict[Hashable, Accuracies] = {}
        self._validation: dict[Hashable, Score] = {}

    @cached_property
    def reference(self) -> float:
        """The reference's accuracy, as `Accuracies.after`."""
        return self._last.accuracy(self._network)

    def validation(self, key: Hashable, student: Made) -> Score:
        """A student's score on the images that are chosen by; equal ones have equal keys."""
        if key not in self._validation:
            network = Network(student.module, student.input_shape)
            self._validation[key] = self._choosing.score(network)
        return self._validation[key]

    def of(self, key: Hashable, student: Made) -> Accuracies:
        """Accuracies of a student."""
        if key not in self._found:
            validation, before = self.validation(key, student), None
            if student.before is not None:
                before = self._last.accuracy(Network(student.before, student.input_shape))
            after = validation.value
            if self._data.test is not None:
                after = self._last.accuracy(Network(student.module, student.input_shape))
            self._found[key] = Accuracies(before, after, validation)
        return self._found[key]

    @cached_property
    def _network(self) -> Network:
        return self._make()

    @cached_property
    def _last(self) -> Judge:
        return Judge(self._data, self._network, self._task)

    @cached_property
    def _choosing(self) -> Judge:
        return Judge(replace(self._data, test=None), self._network, self._task)


def judged_on(data: ImageData) -> str:
    """What the images are that networks are judged on, in words."""
    return "validation images, also used to choose" if data.test is None else "test images"


def parity_images(data: ImageData, input_shape: tuple[int, ...]) -> Tensor:
    """The first validation images (n, *input_shape), resized where they have another size."""
    split = data.validation
    images, _ = next(iter(split.batches(min(PARITY_IMAGES, len(split)))))
    return resized(images, input_shape)


def _at_size(network: Network) -> AtSize:
    return AtSize(network.module, network.input_shape)
