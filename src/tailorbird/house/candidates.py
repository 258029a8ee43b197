"""The candidates of a model house: the teacher with alternatives in place of its blocks.

Costs and losses add up over the alternatives (Bespoke, eq. 4 and 5). A latency's savings begin as
those of isolated blocks and are corrected by whole networks that were measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

from tailorbird.data.images import ImageData, Split
from tailorbird.data.resizing import AtSize
from tailorbird.data.unfamiliar import comparing
from tailorbird.errors import ConfigError
from tailorbird.estimate.additive import correct
from tailorbird.estimate.block_quality import BlockModel, learn, stages_for
from tailorbird.family import AdditiveProblem, Floats
from tailorbird.fit.candidates import (
    Judgement,
    Key,
    Made,
    Network,
    Timing,
    Trained,
    Words,
    latency_at,
)
from tailorbird.graph.structure import content_key
from tailorbird.graph.surgery import capture
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative
from tailorbird.house.build import House
from tailorbird.house.family import HouseFamily
from tailorbird.house.structures import (
    TEACHER,
    TOGETHER,
    WHOLE,
    Structures,
    structures_of,
    whole_labels,
)
from tailorbird.measure.counts import count
from tailorbird.measure.latencies import Latencies
from tailorbird.progress import Progress, each
from tailorbird.runfolder import short_hash
from tailorbird.space import Genomes, Space
from tailorbird.targets import Place
from tailorbird.train.clock import Pause
from tailorbird.train.evaluate import logits, logits_and_targets, predictions, score
from tailorbird.train.precision import compute_device
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

NOISE = 0.01
"""Standard error of one measured latency, as a share of the teacher's."""

OWN, CHANGED = "own", "changed"
"""Kinds of candidates: of the teacher's layers alone, and donors' whole networks made smaller."""

WORDS = Words(
    reference="teacher",
    candidate="candidate of this house",
    way_out="relax the limit, add smaller donors, or raise house.pruned",
    training="retrain",
    doing="retraining",
    opening="measure",
)


@dataclass(eq=False, repr=False)
class HouseCandidates:
    """Candidates of a scored house; implements `tailorbird.fit.candidates.Candidates`.

    Args:
        house: a scored house.
        data: training images retrain; what judges is told by `judge`.
        folder: for networks in training; made when missing.
        recipe: how students are retrained.
        seed: of the retraining.
        progress: told about it.
        donors: that answer to the teacher's classes, and may be shipped as they are.
    """

    house: House
    data: ImageData
    _: KW_ONLY
    folder: Path
    recipe: Recipe
    seed: int
    progress: Progress
    donors: Mapping[str, LayerGraph] = field(default_factory=dict)

    words: ClassVar[Words] = WORDS
    closes: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        self._isolated: dict[str, Mapping[str, float]] = {}
        self._corrected: HouseFamily | None = None
        self._answered: dict[tuple[bool, int | None], Tensor] = {}
        self._contents: dict[Key, str] = {}
        self._observed = ""

    # estimated ----------------------------------------------------------------------------------

    @property
    def family(self) -> HouseFamily:
        """The house with what is known of its costs; begun when it is asked for."""
        return self._counted if self._corrected is None else self._corrected

    @cached_property
    def reference(self) -> Key:
        """The teacher: no block is replaced."""
        return (0,) * len(self.family.slots)

    @property
    def space(self) -> Space:
        """One gene per block with alternatives."""
        return self.family.space

    @property
    def problem(self) -> AdditiveProblem:
        """The choice as an additive problem, all places' latencies among its metrics."""
        return self.family.problem

    def cost(self, genomes: Genomes) -> Mapping[str, Floats]:
        """Estimated figures (n,) of ``genomes`` (n, genes)."""
        return self.family.cost(genomes)

    def quality(self, genomes: Genomes) -> Floats:
        """Minus the summed losses (n,) of ``genomes`` (n, genes)."""
        return self.family.quality(genomes)

    def genome(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        """The genome (genes,) that chooses alternatives by their indices."""
        return self.family.genome(chosen)

    @property
    def kinds(self) -> Mapping[str, Sequence[int]]:
        """Candidates that have not been trained to work as they are, so they win most by it: those
        of the teacher's own layers, without those that were left out, and whole donors with fewer
        parts or channels.
        """
        made = [_kind(one) for one in self.family.alternatives]
        found = {kind: [i for i, one in enumerate(made) if one == kind] for kind in (OWN, CHANGED)}
        return {kind: some for kind, some in found.items() if 0 < len(some) < len(made)}

    def kind(self, key: Key) -> str:
        """The kind of all that stands in for blocks of the teacher; empty where they are mixed."""
        known = self.family.by_name
        found = {_kind(known[name]) for name in self.family.names(key)} or {OWN}
        return found.pop() if len(found) == 1 else ""

    # measured -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Nothing: the house is scored."""

    def latencies(self, place: Place) -> Latencies:
        """Measured structures and networks, in the house's folder."""
        return self.house.store.latencies(place.key)

    def open(self, place: Place, timing: Timing | None) -> float:
        """Time every distinct structure alone; what an alternative saves is the difference."""
        if timing is None:
            raise ConfigError(
                f"'{place.name}': expected a device that measures; a latency table says nothing "
                "of a house's blocks"
            )
        base = timing.reference_ms
        networks = self._structures.networks
        timed = timing.measure(
            {name: partial(networks.__getitem__, name) for name in networks},
            title="measure blocks",
            together=TOGETHER,
        )
        figures = {name: one.median_ms for name, one in timed.items()}
        self._isolated[place.name] = self._structures.saved(figures)
        self._save(place, base, self._isolated[place.name])
        return base

    def label(self, key: Key) -> str:
        """The alternatives' names; equal houses of one run folder have equal ones.

        Of a whole network, that of the first one of its structure.
        """
        names = self.family.names(key)
        if len(names) == 1 and names[0] in self._whole:
            return self._whole[names[0]]
        return WHOLE + ",".join(names) if names else TEACHER

    def named(self, label: str) -> Key | None:
        """The candidate of a label; ``None`` for a structure, or alternatives that are gone."""
        names = label.removeprefix(WHOLE).split(",")
        known = {a.name for a in self.family.alternatives}
        if not label.startswith(WHOLE) or not known.issuperset(names):
            return None
        return tuple(self.family.of_names(names).tolist())

    def content(self, key: Key) -> str:
        """Two branches left out one by one are the run that has neither."""
        if key not in self._contents:
            self._contents[key] = content_key(self._cut(key), self.house.teacher.input_shape)
        return self._contents[key]

    def checks(self, place: Place, proposed: Sequence[Key]) -> Sequence[Key]:
        """The teacher with each single replacement of the proposed: savings in context."""
        names = sorted({name for key in proposed for name in self.family.names(key)})
        return [tuple(self.family.of_names([name]).tolist()) for name in names]

    def learn(self, place: Place, measured_ms: Mapping[Key, float]) -> None:
        """Correct the savings by whole networks, see `tailorbird.estimate.additive`."""
        base = self.family.base[latency_at(place)]
        index = {a.name: i for i, a in enumerate(self.family.alternatives)}
        rows = sorted((self.family.names(key), ms) for key, ms in measured_ms.items())
        rows = [row for row in rows if row[0]]
        chosen = np.zeros((len(rows), len(index)))
        for row, (names, _) in enumerate(rows):
            chosen[row, [index[name] for name in names]] = 1
        isolated = self._isolated[place.name]
        savings = correct(
            np.array([isolated[name] for name in index]),
            chosen,
            np.array([base - ms for _, ms in rows]),
            noise=NOISE * base,
        )
        self._save(place, base, dict(zip(index, savings.tolist(), strict=True)))

    # built and judged ---------------------------------------------------------------------------

    def network(self, key: Key) -> Network:
        """The candidate as it would be shipped: masks cut."""
        return Network(self._cut(key), self.house.teacher.input_shape)

    def judge(self, keys: Sequence[Key]) -> Sequence[Judgement]:
        """Quality is divergence from the teacher, or accuracy where ``house.rank_by`` says so, on
        `ImageData.scoring`. Accuracy is of images whose labels hold (`ImageData.choosing`), so that
        limits on it keep their meaning.
        """
        new = each(self.progress, "judge candidates", keys)
        return [self._weighed(self._induced(key)) for key in new]

    def parts(self, key: Key) -> tuple[str, ...]:
        """The replaced blocks, as ``"block -> alternative"``."""
        known = {a.name: a for a in self.house.choices}
        return tuple(
            f"{known[n].block} -> {n} ({known[n].origin}, {known[n].variant})"
            for n in self.family.names(key)
        )

    def weigh(
        self, network: Network, images: int | None = None, *, trained: bool = False
    ) -> Judgement:
        """By the same rule; quality of what was trained is its accuracy on `comparing`, where that
        is made (`tailorbird.data.unfamiliar`).
        """
        module = AtSize(network.module, network.input_shape)
        if not trained or self.comparing is self.data.choosing:
            return self._weighed(module, images)
        task, device = self.house.task, compute_device()
        found = score(module, self.comparing, device=device, limit=images, task=task)
        return Judgement(found.value, self._answered_on(self.data.choosing, module, images)[1])

    def judged_as(self, key: Key) -> Network:
        """The candidate as it would be shipped, but for its training."""
        return self.network(key)

    def _cut(self, key: Key) -> fx.GraphModule:
        """The candidate's network, masks cut; of the reference the teacher itself."""
        if key == self.reference:
            return self.house.teacher.module
        return self.house.cut(self._induced(key))

    def _weighed(self, module: nn.Module, images: int | None = None) -> Judgement:
        task, scoring, choosing = self.house.task, self.data.scoring, self.data.choosing
        outputs, right = self._answered_on(scoring, module, images)
        accuracy = right if scoring is choosing else self._answered_on(choosing, module, images)[1]
        if self.house.rank_by == "accuracy_loss":
            return Judgement(right, accuracy)
        return Judgement(-float(task.distil(outputs, self._answers(scoring, images))), accuracy)

    def _answered_on(
        self, split: Split, module: nn.Module, images: int | None
    ) -> tuple[Tensor, float]:
        """Logits, and the share of them that is right; that agrees without labels."""
        task = self.house.task
        outputs, targets = logits_and_targets(module, split, device=compute_device(), limit=images)
        scorer = task.scorer(outputs.device)
        right = task.answers(self._answers(split, images)) if targets is None else targets
        scorer.add(outputs, right)
        return outputs, scorer.result().value

    @cached_property
    def comparing(self) -> Split:
        """Images that no network knows better than another; see `tailorbird.data.unfamiliar`."""
        return comparing(self.data, self.house.task, self._says)

    def _says(self, split: Split) -> Tensor:
        module, task = self.house.teacher.module, self.house.task
        return predictions(module, split, device=compute_device(), task=task)

    def _answers(self, split: Split, images: int | None) -> Tensor:
        """The teacher's logits."""
        key = split is self.data.scoring, images
        if key not in self._answered:
            module = self.house.teacher.module
            self._answered[key] = logits(module, split, device=compute_device(), limit=images)
        return self._answered[key]

    def _induced(self, key: Key) -> fx.GraphModule:
        return self.family.induce(self.family.names(key))

    # trained further ----------------------------------------------------------------------------

    @property
    def epochs(self) -> float:
        """As the recipe says."""
        return self.recipe.epochs

    @property
    def minutes(self) -> float | None:
        """As the recipe says."""
        return self.recipe.minutes

    def training(self, key: Key) -> str:
        """A short hash of the alternatives, the recipe and the seed."""
        names = self.family.names(key)
        return short_hash({"names": names, "recipe": asdict(self.recipe), "seed": self.seed})

    def train(self, names: Mapping[Key, str], *, pause: Pause | None = None) -> Mapping[Key, Made]:
        """Retrain students in one pass of the teacher per batch; the teacher stays as it is."""
        made = {
            key: Made(
                module=self.house.cut(self._induced(key)),
                input_shape=self.house.teacher.input_shape,
                before=None,
            )
            for key in names
            if key == self.reference
        }
        names = {key: name for key, name in names.items() if key not in made}
        return made | self._retrained(names, pause) if names else made

    def _retrained(self, names: Mapping[Key, str], pause: Pause | None) -> dict[Key, Made]:
        """Students of at least one replaced block."""
        blocks = {a.name: self.house.sample.blocks[a.block] for a in self.family.alternatives}
        answers = self.house.teacher.output  # compared anyway
        assignments = []
        for key, name in names.items():
            replaced = self.family.names(key)
            student = self._induced(key)
            assignments.append(
                Assignment(
                    name=name,
                    student=student,
                    hints=tuple(
                        (f"replaced_{number}", blocks[one].output)
                        for number, one in enumerate(replaced)
                        if self.recipe.mse_weight
                        and blocks[one].output != answers
                        and hasattr(student, f"replaced_{number}")  # zeros leave nothing behind
                    ),
                    checkpoint=self.folder / self.training(key),
                )
            )
        nodes = sorted({node for assignment in assignments for _, node in assignment.hints})
        outcomes = retrain_all(
            assignments,
            capture(self.house.teacher, nodes),
            self.data,
            recipe=self.recipe,
            seed=self.seed,
            task=self.house.task,
            progress=self.progress,
            pause=pause,
        )
        made = {}
        for key, outcome in zip(names, outcomes, strict=True):
            outcome.tell(self.progress, doing=WORDS.doing)
            assert isinstance(outcome.module, fx.GraphModule)
            made[key] = Made(
                module=self.house.cut(outcome.module),
                input_shape=self.house.teacher.input_shape,
                before=self._induced(key),
                seconds=outcome.seconds,
                epochs=outcome.epochs,
            )
        return made

    def observe(self, trained: Sequence[Trained]) -> None:
        """Weigh losses by the stage of the teacher where they occur, if candidates that were
        trained are ranked better so; see `tailorbird.estimate.block_quality`.
        """
        model = self.block_model(trained)
        if model is None:
            return
        told = f"{model}; the first rank what is searched" if model.better else str(model)
        if told != self._observed:
            self.progress.say(told)
        self._observed = told
        weights = model.weights if model.better else np.ones(len(model.weights))
        parts = self._losses_by_stage(len(model.weights))
        losses = {name: float(part @ weights) for name, part in parts.items()}
        self._corrected = replace(self.family, losses=losses)

    def block_model(self, trained: Sequence[Trained]) -> BlockModel | None:
        """How losses of blocks add up to what became of candidates that were trained; ``None``
        where they are too few to tell.

        Args:
            trained: those of the share of training that most have had are taken.
        """
        shares = Counter(one.share for one in trained)
        most = max(shares, key=lambda share: (shares[share], -share), default=None)
        became = {one.key: one.quality for one in trained if one.share == most}
        became.pop(self.reference, None)
        if not became:
            return None
        parts = self._losses_by_stage(stages_for(len(became)))
        summed = [
            np.sum([parts[name] for name in self.family.names(key)], axis=0) for key in became
        ]
        return learn(np.array(summed), np.array(list(became.values())))

    def _losses_by_stage(self, count: int) -> dict[str, Floats]:
        """Alternative's name -> (stages,) its loss, shared out to the stages where it stands."""
        plain, stages = self._counted.losses, self.family.stages(count)
        return {name: plain[name] * stages[name] for name in plain}

    def as_they_are(self) -> Mapping[str, Made]:
        """The donors."""
        return {
            name: Made(module=donor.module, input_shape=donor.input_shape, before=None)
            for name, donor in self.donors.items()
        }

    # figures ------------------------------------------------------------------------------------

    def _save(self, place: Place, base: float, savings: Mapping[str, float]) -> None:
        metric, family = latency_at(place), self.family
        self._corrected = replace(
            family,
            base={**family.base, metric: base},
            savings={**family.savings, metric: savings},
        )

    @cached_property
    def _structures(self) -> Structures:
        house = self.house
        chosen = {a.name: house.modules[a.name] for a in house.choices}
        return structures_of(house.teacher, house.sample, chosen)

    @cached_property
    def _whole(self) -> Mapping[str, str]:
        return whole_labels(self.house.teacher, self.house.sample.alternatives)

    @cached_property
    def _counted(self) -> HouseFamily:
        """The family with what is counted, before any place is opened."""
        house, teacher, networks = self.house, self.house.teacher, self._structures.networks
        counted = {
            key: count(one.module, one.input_shape).as_metrics()
            for key, one in each(self.progress, "count blocks", networks.items())
        }
        base = count(teacher.module, teacher.input_shape).as_metrics()
        savings = {
            metric: self._structures.saved({k: figures[metric] for k, figures in counted.items()})
            for metric in base
        }
        # Activations of a block need not be alive at the network's peak: only weights surely go.
        savings["peak_memory_mb"] = dict(savings["size_mb"])
        return HouseFamily(
            teacher=teacher,
            blocks=house.sample.blocks,
            alternatives=house.choices,
            modules=house.modules,
            losses={a.name: house.scores[a.name][house.rank_by] for a in house.choices},
            base=base,
            savings=savings,
        )


def _kind(alternative: Alternative) -> str:
    """The kind of a candidate that holds this one alone, or others of its kind."""
    if alternative.origin in ("teacher", "identity"):
        return OWN
    return CHANGED if alternative.as_is and alternative.variant != "whole" else ""
