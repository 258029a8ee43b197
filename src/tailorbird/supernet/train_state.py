"""What a supernet's training changes from step to step, and how it is stored and taken up again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from tailorbird.errors import ConfigError, Fault, StoreError
from tailorbird.supernet.samplers import Sampler
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
from tailorbird.train.checkpoint import Json, digest, under
from tailorbird.train.optimisers import (
    build_optimizer,
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
)
from tailorbird.train.recipe import Optimizer, Precision, Recipe

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

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


@dataclass
class TrainState:
    """Weights, optimiser, average, teacher and counters of a run.

    There is no random state: all that is random is derived from the seed and the step's number.

    Args:
        module: in training, on its device.
        optimizer_name: of `build_optimizer`; also ``weight_decay``, ``momentum``.
        decayed: names of the parameters that may decay; None for all.
        ema: decay of the weights' running average; None for no average.
    """

    module: Supernet
    optimizer_name: Optimizer
    weight_decay: float
    momentum: float
    decayed: frozenset[str] | None = None
    ema: float | None = None
    step: int = 0
    saves: int = 0
    seconds: float = 0.0
    macs: float = 0.0
    history: list[SupernetEpoch] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    teacher: Supernet | None = None

    def __post_init__(self) -> None:
        self.optimizer = self._fresh_optimizer()
        self.average = self._fresh_average()

    def act(self, action: Action) -> None:
        """Do what a step wants done first."""
        if isinstance(action, FreezeTeacher):
            self.teacher = self._frozen()
        elif isinstance(action, FreshOptimizer):
            self.optimizer = self._fresh_optimizer()
        elif isinstance(action, SortChannels):
            self._sort(action)
        elif isinstance(action, ZeroResidualGains):
            zero_residual_gains(self.module)
            self.average = self._fresh_average()

    def finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(p.isfinite().all()) for p in self.module.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores as tensors; `record` has the rest."""
        found = {f"model/{name}": value for name, value in self.module.state_dict().items()}
        if self.average is not None:
            average = self.average.module.state_dict()
            found |= {f"average/{name}": value for name, value in average.items()}
        if self.teacher is not None:
            frozen = self.teacher.state_dict()
            found |= {f"teacher/{name}": value for name, value in frozen.items()}
        return found | optimizer_tensors(self.optimizer)

    def record(self, samplers: Sequence[Sampler]) -> dict[str, Json]:
        """What a checkpoint stores as JSON, samplers' states included."""
        return {
            "step": self.step,
            "saves": self.saves,
            "seconds": self.seconds,
            "macs": self.macs,
            "history": [cast("dict[str, Json]", asdict(epoch)) for epoch in self.history],
            "sums": cast("dict[str, Json]", asdict(self.sums)),
            "optimizer": optimizer_numbers(self.optimizer),
            "optimizer_name": self.optimizer_name,
            "samplers": [sampler.state() for sampler in samplers],
        }

    def restore(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Json], samplers: Sequence[Sampler]
    ) -> None:
        """Take up what `tensors` and `record` gave.

        Raises:
            StoreError: for the state of a run whose weights, average, optimiser or samplers are
                others; says which. Nothing has been taken up then.
        """
        if problems := self._misfits(tensors, record, samplers):
            lines = "".join(f"\n  - {line}" for line in problems)
            raise StoreError(
                "the checkpoint can't be continued with these changes; go back to what it was "
                f"made with, or begin anew in another folder:{lines}"
            )
        self.step = cast("int", record["step"])
        self.saves = cast("int", record["saves"])
        self.seconds = cast("float", record["seconds"])
        self.macs = cast("float", record["macs"])
        epochs = cast("list[dict[str, float]]", record["history"])
        self.history = [SupernetEpoch(**epoch) for epoch in epochs]  # type: ignore[arg-type]  # as stored
        self.sums = Sums(**cast("dict[str, int]", record["sums"]))
        self.module.load_state_dict(under("model/", tensors))
        if self.average is not None:
            self.average.module.load_state_dict(under("average/", tensors))
        if frozen := under("teacher/", tensors):
            self.teacher = self._frozen()
            self.teacher.load_state_dict(frozen)
        restore_optimizer(self.optimizer, tensors, record["optimizer"])
        states = cast("list[dict[str, Json]]", record["samplers"])
        for sampler, state in zip(samplers, states, strict=True):
            sampler.restore(state)

    def _misfits(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Json], samplers: Sequence[Sampler]
    ) -> list[str]:
        """What of a stored state has no place in this one."""
        problems = []
        stored, own = under("model/", tensors), self.module.state_dict()
        wrong = sorted(
            name
            for name in stored.keys() | own.keys()
            if name not in stored or name not in own or stored[name].shape != own[name].shape
        )
        if wrong:
            problems.append(
                f"{len(wrong)} weights are missing, unexpected or misshaped: "
                f"{', '.join(wrong[:10])}{', ...' if len(wrong) > 10 else ''}"
            )
        averaged = bool(under("average/", tensors))
        if averaged != (self.average is not None):
            told = ("without", "with")
            problems.append(f"recipe.ema: {told[averaged]} there, {told[not averaged]} now")
        optimizer = record.get("optimizer_name")
        if optimizer != self.optimizer_name:
            problems.append(f"recipe.optimizer: {optimizer!r} there, {self.optimizer_name!r} now")
        there = cast("list[dict[str, Json]]", record.get("samplers", []))
        kept, needed = [sorted(state) for state in there], [sorted(s.state()) for s in samplers]
        if kept != needed:
            problems.append(f"samplers: {len(kept)} that keep {kept} there, {needed} now")
        return problems

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(
            self.optimizer_name,
            self.module,
            learning_rate=1.0,  # set before every step
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            decayed=self.decayed,
        )

    def _fresh_average(self) -> ModelEmaV3 | None:
        if self.ema is None:
            return None
        from timm.utils.model_ema import ModelEmaV3

        return ModelEmaV3(self.module, decay=self.ema, use_warmup=True)

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
        names = {name for values in self.optimizer.state.values() for name in values}
        for name in sorted(names):
            moments = {
                weight: values[name]
                for weight, values in self.optimizer.state.items()
                if isinstance(values.get(name), Tensor) and values[name].shape == weight.shape
            }
            for weight, moment in moments.items():
                inside[weight].copy_(moment)
            reorder_channels(shadow, orders)
            for weight, moment in moments.items():
                moment.copy_(inside[weight])
        reorder_channels(self.module, orders)
        if self.average is not None:
            reorder_channels(self.average.module, orders)


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
