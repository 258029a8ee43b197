"""What a supernet's training changes from step to step, and how it is stored and taken up again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from tailorbird.errors import ConfigError, Fault
from tailorbird.supernet.samplers import Keeper, Memory
from tailorbird.supernet.schemes.channels import (
    channel_orders,
    reorder_channels,
    zero_residual_gains,
)
from tailorbird.supernet.schemes.scheme import (
    Action,
    FreezeTeacher,
    FreshOptimizer,
    Plan,
    Scheme,
    SortChannels,
    ZeroResidualGains,
)
from tailorbird.train.checkpoint import Json, digest, prefixed, under
from tailorbird.train.optimisers import build_optimizer
from tailorbird.train.recipe import Optimizer, Precision, Recipe
from tailorbird.train.state import State

if TYPE_CHECKING:
    from tailorbird.data.images import ImageData
    from tailorbird.supernet.network import Supernet


@dataclass(frozen=True, kw_only=True)
class SupernetRecipe:
    """How steps are made; what they train, for how long and how fast is the scheme's affair.

    Args are those of `tailorbird.train.recipe.Recipe`; weight decay spares norms and biases.

    Args:
        accumulate: each step's images are split into so many equal parts, which run one after the
            other, each normalised by its own statistics; their gradients are averaged. Takes the
            memory of one part. Several processes share the parts out, at least one to each.

    Raises:
        ConfigError: listing every value that is out of range.

    Example:
        >>> SupernetRecipe(batch_size=1)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: recipe.batch_size: expected a whole number of 2 or more,
        got 1
    """

    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    weight_decay: float = 3e-5
    momentum: float = 0.9
    clip_norm: float | None = None
    ema: float | None = None
    precision: Precision = "auto"
    channels_last: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        settings = asdict(self)
        parts = settings.pop("accumulate")
        problems: list[str] = []
        try:
            Recipe(**settings)
        except ConfigError as error:
            problems.extend(error.problems)
        if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
            what = f"expected a whole number of 1 or more, got {parts!r}"
            problems.append(Fault("recipe.accumulate", what))
        elif not problems:
            problems += part_problems(self.batch_size, parts)
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class SupernetEpoch:
    """Figures of one epoch.

    Args:
        epoch: passes over the training images so far.
        step: steps so far.
        phase: what the scheme calls its last step.
        loss: mean training loss over the epoch's steps and networks.
        full_loss: the same over the full network's; None where it wasn't trained.
        networks: networks trained per step, on average.
        learning_rate: at the end of the epoch.
        images_per_second: images of the epoch, each counted once, by its wall time.
        seconds: wall time since the start.
        largest: share of validation images that the full network gets right, with re-estimated
            statistics; None where it wasn't validated.
        smallest: the same of the smallest subnet.
    """

    epoch: float
    step: int
    phase: str
    loss: float
    full_loss: float | None
    networks: float
    learning_rate: float
    images_per_second: float
    seconds: float
    largest: float | None = None
    smallest: float | None = None


@dataclass(frozen=True, kw_only=True)
class SupernetSteps:
    """Figures of the steps since the losses were last looked at: 1 on a CPU, up to 32 on a GPU.

    Args:
        step: steps so far.
        phase: what the scheme calls the last of them.
        loss: mean over the networks of the last of them.
        learning_rate: of the last of them.
        images_per_second: since the epoch began.
    """

    step: int
    phase: str
    loss: float
    learning_rate: float
    images_per_second: float


@dataclass
class Sums:
    """What is summed up over the steps of an epoch."""

    steps: int = 0
    networks: int = 0
    loss: float = 0.0
    full: int = 0
    full_loss: float = 0.0
    images: int = 0
    seconds: float = 0.0


class TrainState:
    """A supernet in training: its `State`, the frozen teacher and the counters of the run.

    Args:
        module: in training, on its device.
        optimizer: of `build_optimizer`; also ``weight_decay``, ``momentum``.
        decayed: names of the parameters that may decay; None for all.
        ema: decay of the weights' running average; None for no average.
    """

    def __init__(
        self,
        module: Supernet,
        *,
        optimizer: Optimizer,
        weight_decay: float,
        momentum: float,
        decayed: frozenset[str] | None = None,
        ema: float | None = None,
    ) -> None:
        make = partial(
            build_optimizer,
            optimizer,
            learning_rate=1.0,  # set before every step
            weight_decay=weight_decay,
            momentum=momentum,
            decayed=decayed,
        )
        self.module = module
        self.net = State(module, make, SupernetEpoch, ema=ema)
        self.saves, self.macs, self.sums = 0, 0.0, Sums()
        self.teacher: Supernet | None = None

    def act(self, action: Action) -> None:
        """Do what a step wants done first."""
        if isinstance(action, FreezeTeacher):
            self.teacher = self._frozen()
        elif isinstance(action, FreshOptimizer):
            self.net.renew_optimizer()
        elif isinstance(action, SortChannels):
            self._sort(action)
        elif isinstance(action, ZeroResidualGains):
            zero_residual_gains(self.module)
            self.net.renew_average()

    def kept(self) -> Supernet:
        """What a run leaves in the end: the averaged weights where there are any."""
        average = self.net.average
        return self.module if average is None else cast("Supernet", average.module)

    def tensors(self, keepers: Sequence[Keeper]) -> dict[str, Tensor]:
        """What a checkpoint stores as tensors; `record` has the rest."""
        found = self.net.tensors()
        if self.teacher is not None:
            found |= prefixed("teacher/", self.teacher.state_dict())
        for number, keeper in enumerate(keepers):
            learnt = {k: v for k, v in keeper.state().items() if isinstance(v, Tensor)}
            found |= prefixed(f"samplers/{number}/", learnt)
        return found

    def record(self, keepers: Sequence[Keeper]) -> dict[str, Json]:
        """What a checkpoint stores as JSON, what samplers and plan have learnt included."""
        return self.net.record() | {
            "saves": self.saves,
            "macs": self.macs,
            "sums": cast("dict[str, Json]", asdict(self.sums)),
            "samplers": [
                {k: v for k, v in keeper.state().items() if not isinstance(v, Tensor)}
                for keeper in keepers
            ],
        }

    def restore(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Json], keepers: Sequence[Keeper]
    ) -> None:
        """Take up what `tensors` and `record` gave.

        Raises:
            StoreError: for the state of a run whose weights, average, optimiser or samplers are
                others; says which. Nothing has been taken up then.
        """
        stored = cast("list[dict[str, Json]]", record.get("samplers", []))
        states: list[Memory] = [
            {**under(f"samplers/{number}/", tensors), **numbers}
            for number, numbers in enumerate(stored)
        ]
        there, needed = [sorted(one) for one in states], [sorted(k.state()) for k in keepers]
        wrong = f"samplers: {len(there)} that keep {there} there, {needed} now"
        self.net.restore(tensors, record, others=[wrong] if there != needed else [])
        self.saves, self.macs = cast("int", record["saves"]), cast("float", record["macs"])
        self.sums = Sums(**cast("dict[str, int]", record["sums"]))
        if frozen := under("teacher/", tensors):
            self.teacher = self._frozen()
            self.teacher.load_state_dict(frozen)
        for keeper, state in zip(keepers, states, strict=True):
            keeper.restore(state)

    def _frozen(self) -> Supernet:
        """A copy of the full network, in train mode but for dropout: it normalises by batch."""
        frozen = copy.deepcopy(self.module).requires_grad_(False).train()
        for part in frozen.modules():
            if isinstance(part, torch.nn.Dropout):
                part.eval()
        return frozen

    def _sort(self, action: SortChannels) -> None:
        """Permute channels, and with them their momenta and averages."""
        orders = channel_orders(self.module, action.region)
        shadow = copy.deepcopy(self.module).requires_grad_(False)
        inside: dict[Tensor, Tensor] = dict(
            zip(self.module.parameters(), shadow.parameters(), strict=True)
        )
        names = {name for values in self.net.optimizer.state.values() for name in values}
        for name in sorted(names):
            moments = {
                weight: values[name]
                for weight, values in self.net.optimizer.state.items()
                if isinstance(values.get(name), Tensor) and values[name].shape == weight.shape
            }
            for weight, moment in moments.items():
                inside[weight].copy_(moment)
            reorder_channels(shadow, orders)
            for weight, moment in moments.items():
                moment.copy_(inside[weight])
        reorder_channels(self.module, orders)
        if self.net.average is not None:
            reorder_channels(self.net.average.module, orders)


def part_problems(batch_size: int, parts: int) -> list[str]:
    """What is wrong with a batch of that size in so many parts."""
    if batch_size % parts == 0 and batch_size >= 2 * parts:
        return []
    what = (
        f"expected a multiple of {parts}, the number of parts that batches are split into "
        "(accumulate, or the processes where these are more), with 2 images or more in each; got "
        f"{batch_size}"
    )
    return [Fault("recipe.batch_size", what)]


def identity(
    supernet: Supernet,
    data: ImageData,
    scheme: Scheme,
    plan: Plan,
    *,
    recipe: SupernetRecipe,
    seed: int,
) -> dict[str, Json]:
    """What has to be the same for a run to go on from a checkpoint."""
    known: dict[str, Json] = {
        "kind": "supernet",
        "seed": seed,
        "data": data.fingerprint,
        "space": supernet.architectures.name,
        "resolutions": cast("list[Json]", [*supernet.architectures.space.choices[0].values]),
        "dropout": supernet.dropout,
        "initial weights": digest(supernet),
        "samplers": [sampler.name for sampler in plan.samplers],
    }
    if (definition := supernet.architectures.definition) is not None:
        known["space.definition"] = json.loads(json.dumps(definition, sort_keys=True))
    known |= {f"recipe.{name}": value for name, value in asdict(recipe).items()}
    return known | {f"scheme.{name}": value for name, value in scheme.record().items()}
