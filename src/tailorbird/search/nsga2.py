"""NSGA-II (Deb et al., 2002) as pymoo implements it: a yardstick for many targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tailorbird.errors import ConfigError
from tailorbird.family import Estimated, Floats
from tailorbird.progress import Progress, Silent
from tailorbird.search.reach import started
from tailorbird.search.strategy import (
    Evaluator,
    Limits,
    SearchResult,
    Session,
    wrong_settings,
)
from tailorbird.space import Genomes
from tailorbird.threads import one_thread

_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class Nsga2:
    """NSGA-II over quality and every limited cost, with the space's own operators.

    One run serves all limits: the objectives are minus the quality and each limited metric, and
    every member that it judges is offered to every limit. Costs beyond the loosest limit of their
    metric count as violated constraints. Needs ``pip install tailorbird[nsga2]``.

    Args:
        population: members per generation.
        generations: how many generations.
        crossover: probability that two parents are crossed.
        rate: probability that a mutation redraws a gene.

    Raises:
        ConfigError: when a setting is out of its range.
    """

    population: int = 100
    generations: int = 500
    crossover: float = 0.9
    rate: float = 0.1
    name: str = "nsga2"

    def __post_init__(self) -> None:
        whole = {"population": 2, "generations": 1}
        if problems := wrong_settings(self, whole=whole, shares=("crossover", "rate")):
            raise ConfigError(problems)

    @one_thread()
    def search(
        self,
        family: Estimated,
        limits: Sequence[Limits],
        *,
        seed: int,
        progress: Progress = _SILENT,
    ) -> SearchResult:
        """See `Strategy.search`.

        Raises:
            ConfigError: also when pymoo is not installed.
        """
        session, rng = Session(self.name, family, limits, seed=seed), np.random.default_rng(seed)
        recorder = _Recorder(session.judge, limits, rng)
        algorithm = self._algorithm(recorder, rng, seed)
        state = np.random.get_state()  # pymoo reseeds numpy's global generator in some versions
        try:
            with session.task(progress, self.generations) as task:
                while algorithm.has_next():
                    algorithm.next()
                    task.advance()
        finally:
            np.random.set_state(state)
        return session.result(recorder.archive.winners(session.judge))

    def _algorithm(self, recorder: _Recorder, rng: np.random.Generator, seed: int) -> _Algorithm:
        """pymoo's algorithm, set up: its classes can only be derived from once it is there."""
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2
            from pymoo.core.crossover import Crossover
            from pymoo.core.mutation import Mutation
            from pymoo.core.problem import Problem
            from pymoo.core.sampling import Sampling
        except ImportError as error:
            raise ConfigError(
                f"strategy nsga2: needs pymoo, which can't be imported ({error}); "
                "pip install tailorbird[nsga2], or choose another strategy"
            ) from error
        space, rate = recorder.judge.family.space, self.rate

        class Searched(Problem):  # type: ignore[misc]  # pymoo has no types
            def _evaluate(
                self, x: Genomes, out: dict[str, Floats], *_: object, **__: object
            ) -> None:
                out["F"], out["G"] = recorder.judged(np.asarray(x, dtype=np.int64))

        class Sample(Sampling):  # type: ignore[misc]  # pymoo has no types
            def _do(self, problem: object, n_samples: int, *_: object, **__: object) -> Genomes:
                return space.sample(n_samples, rng)

        class Cross(Crossover):  # type: ignore[misc]  # pymoo has no types
            def _do(self, problem: object, x: Genomes, *_: object, **__: object) -> Genomes:
                left, right = np.asarray(x, dtype=np.int64)
                pairs = ((left, right), (right, left))
                return np.stack([space.crossover(one, other, rng) for one, other in pairs])

        class Mutate(Mutation):  # type: ignore[misc]  # pymoo has no types
            def _do(self, problem: object, x: Genomes, *_: object, **__: object) -> Genomes:
                return space.mutate(np.asarray(x, dtype=np.int64), rng, rate=rate)

        metrics = len(recorder.loosest)
        problem = Searched(
            n_var=len(space.choices),
            n_obj=1 + metrics,
            n_ieq_constr=metrics,
            xl=np.zeros(len(space.choices)),
            xu=(space.sizes - 1).astype(np.float64),
            vtype=int,
        )
        algorithm = NSGA2(
            pop_size=self.population,
            sampling=Sample(),
            crossover=Cross(2, 2, prob=self.crossover),
            mutation=Mutate(),
            eliminate_duplicates=True,
        )
        algorithm.setup(problem, termination=("n_gen", self.generations), seed=seed, verbose=False)
        searching: _Algorithm = algorithm
        return searching


class _Algorithm(Protocol):
    """What is used of pymoo's algorithms."""

    def has_next(self) -> bool: ...

    def next(self) -> None: ...


class _Recorder:
    """Judges what pymoo asks for, and offers all of it to the archive."""

    def __init__(
        self, judge: Evaluator, limits: Sequence[Limits], rng: np.random.Generator
    ) -> None:
        self.judge = judge
        self.loosest: dict[str, float] = {}
        for bounds in limits:
            for metric, bound in bounds.items():
                self.loosest[metric] = max(bound, self.loosest.get(metric, bound))
        self.archive = started(judge, limits, rng)

    def judged(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Objectives (n, 1 + m) and constraints (n, m, kept at 0 or less) of ``genomes``."""
        quality, cost = self.judge.quality(genomes), self.judge.cost(genomes)
        self.archive.update(genomes, quality, cost)
        figures = np.stack([cost[metric] for metric in self.loosest], axis=1)
        objectives = np.concatenate([-quality[:, None], figures], axis=1)
        return objectives, figures / np.array(list(self.loosest.values())) - 1.0
