"""Quantisation-aware training: a network is trained as its quantised file computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import ImageData
from tailorbird.device import Run
from tailorbird.errors import TrainingError
from tailorbird.measure.answering import run_onnx
from tailorbird.progress import Progress
from tailorbird.task import CLASSIFICATION, Task
from tailorbird.train.answers import Teacher
from tailorbird.train.quantised.match import Quantised, fake_quantised
from tailorbird.train.quantised.onnx_places import read_onnx
from tailorbird.train.quantised.places import ReadPlaces
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all
from tailorbird.train.students import Trained

RECIPE = Recipe.named(
    "standard",
    epochs=1,
    batch_size=64,
    optimizer="adamw",
    learning_rate=3e-4,
    weight_decay=0.0,
    label_smoothing=0.0,
    kl_weight=1.0,
    precision="float32",
    recalibrate_batches=0,
)
"""How networks are trained here: gently, after what they say in float32. bfloat16 can't hold the
grids of 8 bits, and BatchNorm's statistics are in the file's weights, so they stay."""

_IMAGES = 64
_SHARE = 0.5
"""How far the network that rounds may be from the file, as a share of what int8 itself changes."""

_SHARE_WHOLE = 1.0
"""The same where all places were found. What is left then is the runtime's: some of its operators
in int8 are approximations, and a value near a half goes up here and down there, which deep networks
carry on."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How near a network with fake quantisation is to the file that it stands for.

    Args:
        top1_agreement: share of images with the largest output at the same place.
        difference: mean absolute difference of outputs.
        quantisation: the same between the file and the network in float32.
        images: how many were compared.
        whole: whether all quantised places of the file were found in the network.
    """

    top1_agreement: float
    difference: float
    quantisation: float
    images: int
    whole: bool

    @property
    def close(self) -> bool:
        """Whether training the one trains the other.

        Example:
            >>> Gap(top1_agreement=0.9, difference=0.7, quantisation=1.0, images=64, whole=False
            ...     ).close
            False
        """
        share = _SHARE_WHOLE if self.whole else _SHARE
        return self.difference <= share * self.quantisation + 1e-4


@dataclass(frozen=True, kw_only=True)
class QuantisedTraining:
    """What quantisation-aware training leaves.

    Args:
        module: the network in float32 with trained weights: the student's structure and names.
        rounding: the same as its file computes it, with fake quantisation.
        trained: figures; ``accuracy`` and ``accuracy_before`` are of networks that round, on
            validation images.
        places: activations that are rounded in training.
        unmatched: quantised tensors of the file that are not.
        gap: between the file and the network that rounds, before training.
    """

    module: nn.Module
    rounding: Quantised
    trained: Trained
    places: int
    unmatched: tuple[str, ...]
    gap: Gap


def train_quantised(
    student: nn.Module,
    file: Path,
    reference: Teacher,
    data: ImageData,
    *,
    recipe: Recipe = RECIPE,
    seed: int,
    folder: Path | None = None,
    task: Task = CLASSIFICATION,
    read: ReadPlaces = read_onnx,
    run: Run = run_onnx,
    batch: int = 2,
    given: Callable[[Tensor], Tensor] | None = None,
    finished: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    name: str = "student",
) -> QuantisedTraining:
    """Train a network with the rounding of its quantised file, where the file rounds.

    Grids of activations are the file's and stay; those of weights follow the weights, as the
    file's tool finds them. So the same file with the trained weights computes what was trained: see
    `tailorbird.train.quantised.onnx_weights.with_weights`. The better weights of before and after,
    on validation images, are kept.

    Args:
        student: what ``file`` was made of, in float32: images (n, C, H, W), normalised, to logits.
            It is left as it is.
        file: its quantised file.
        reference: whose answers are learned, beside the labels: the student itself, or a teacher.
        data: trained on ``train``, chosen on ``validation``.
        recipe: of the training; its precision has to be float32.
        folder: for the state of each epoch; a run started again continues there.
        read: finds the file's quantised places.
        run: runs the file.
        batch: images that the file is read with, as many as it takes per call or more.
        given: normalised images to what the file takes, where it normalises itself.
        finished: logits to what the file answers, where it adds softmax.
        device: trains there; None is the first CUDA device, else the CPU.
        name: what messages call the student.

    Raises:
        TrainingError: where the network can't be made to round as the file does.
        ExportError: where the file can't be read or run.
        StoreError: when the folder holds another run.
    """
    plain = copy_network(student).cpu().float().eval()
    images = data.train.sample(max(_IMAGES, batch))
    few = images[:batch]
    places = read(file, few if given is None else given(few))
    if not places.activations and not places.constants:
        raise TrainingError(_impossible(name, f"{file.name} quantises nothing"))
    try:
        rounding = fake_quantised(plain, places, few)
    except (RuntimeError, TypeError, ValueError, torch.fx.proxy.TraceError) as error:
        reason = f"fake quantisation can't be put into it: {str(error).splitlines()[0][:300]}"
        raise TrainingError(_impossible(name, reason)) from error
    gap = _gap(rounding, plain, file, images, run=run, given=given, finished=finished)
    if not gap.close:
        told = ", ".join(rounding.unmatched[:5]) or "none"
        raise TrainingError(
            _impossible(
                name,
                f"with fake quantisation it is {gap.difference:.3g} from {file.name} on average, "
                f"which is {gap.quantisation:.3g} from float32. Quantised places of the file that "
                f"were not found in it: {len(rounding.unmatched)} ({told})",
            )
        )
    one = Assignment(name=name, student=rounding, checkpoint=folder)
    [trained] = retrain_all(
        [one], reference, data, recipe=recipe, seed=seed, task=task, device=device,
        progress=progress,
    )  # fmt: skip
    after = trained.module
    assert isinstance(after, Quantised)
    module = copy_network(student).cpu().eval()
    module.load_state_dict({**module.state_dict(), **after.state_of_plain()})
    return QuantisedTraining(
        module=module,
        rounding=after,
        trained=trained,
        places=len(places.activations),
        unmatched=rounding.unmatched,
        gap=gap,
    )


def _impossible(name: str, reason: str) -> str:
    return f"{name}: quantisation-aware training is not possible here: {reason}"


@torch.no_grad()
def _gap(
    rounding: Quantised,
    plain: nn.Module,
    file: Path,
    images: Tensor,
    *,
    run: Run,
    given: Callable[[Tensor], Tensor] | None,
    finished: Callable[[Tensor], Tensor] | None,
) -> Gap:
    taken = images if given is None else given(images)
    theirs = torch.from_numpy(run(file, taken.numpy()))
    ours, exact = rounding(images), plain(images)
    if finished is not None:
        ours, exact = finished(ours), finished(exact)
    return Gap(
        top1_agreement=float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        difference=float((ours - theirs).abs().mean()),
        quantisation=float((exact - theirs).abs().mean()),
        images=len(images),
        whole=not rounding.unmatched,
    )
