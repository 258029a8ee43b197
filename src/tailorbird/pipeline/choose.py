"""Choosing one candidate per target: search, measure the best few whole, correct, search again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn
from torch.nn import functional as F

from tailorbird.data.images import Split
from tailorbird.errors import InfeasibleError
from tailorbird.family import AdditiveProblem
from tailorbird.graph.trace import LayerGraph
from tailorbird.pipeline.pricing import Names, Pricing
from tailorbird.progress import Progress
from tailorbird.search import annealing, exact
from tailorbird.search.selection import Selection, make_selection, within
from tailorbird.targets import Target
from tailorbird.train.evaluate import accuracy, agreement, logits
from tailorbird.train.precision import compute_device

MARGIN = 0.02
"""Share of a latency limit kept free at the choice, for the noise of the final measurement."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate chosen for a target.

    Args:
        target: the target's name.
        names: alternatives in place; empty where the teacher itself meets the limits.
        limits: metric -> bound in its unit, margin not taken off.
        figures: metric -> figure of the whole induced network, latency measured.
        accuracy: on the validation split, before retraining.
        predicted_loss: the additive estimate of what ``house.rank_by`` names.
        annealing_gap: loss of simulated annealing minus the proven optimum.
        measured: candidates measured whole for this target.
        rounds: searches made.
    """

    target: str
    names: Names
    limits: Mapping[str, float]
    figures: Mapping[str, float]
    accuracy: float
    predicted_loss: float
    annealing_gap: float | None
    measured: int
    rounds: int


def choose(
    target: Target,
    pricing: Pricing,
    validation: Split,
    *,
    scale: float = 1.0,
    rounds: int,
    candidates: int,
    seed: int,
    progress: Progress,
    known: Collection[Names] | None = None,
) -> Choice:
    """The best on the validation split of the most promising that meet the limits as measured.

    Best is what ``house.rank_by`` says: least divergence from the teacher, or highest accuracy.

    Each round solves the additive problem exactly for the ``candidates`` best selections, measures
    those whole (in the first round also the teacher with each of their replacements alone, which
    gives savings in context), and corrects the estimate. It ends when the best selection has been
    measured before.

    Args:
        scale: tightens the latency limit, after a student came out over it.
        known: measured networks that the first search may go by, all by default. A search that
            was killed is given those that it began with, and so takes the same turns again.

    Raises:
        InfeasibleError: when no measured candidate is within the limits, with the lowest
            figures that were measured.
    """
    limits = target.absolute(pricing.base)
    bounds = {
        metric: bound * ((1 - MARGIN) * scale if metric == "latency_ms" else 1.0)
        for metric, bound in limits.items()
    }
    tried: dict[Names, dict[str, float]] = {}
    seen = set(pricing.measured() if known is None else known)
    gap: float | None = None
    searches = 0
    if within(pricing.base, bounds):
        tried[()] = dict(pricing.base)
    for number in range(0 if tried else rounds):
        searches += 1
        problem = pricing.problem(seen)
        selections = _promising(problem, bounds, candidates)
        if number == 0 and selections[0].feasible:
            annealed = annealing.anneal(problem, bounds, seed=seed)
            gap = annealed.loss - selections[0].loss
        fresh = [n for s in selections if (n := pricing.names(s.chosen)) not in tried]
        if not fresh:
            break
        singles = sorted({(name,) for names in fresh for name in names}) if number == 0 else []
        figures = pricing.measure([*fresh, *singles])
        seen |= figures.keys()
        tried |= {names: figures[names] for names in fresh}
    met = {names: figures for names, figures in tried.items() if within(figures, bounds)}
    if not met:
        _reach(tried, pricing, seen, bounds)
        # The margin is given up before the target is; the student's own measurement decides then.
        allowed = limits if scale == 1.0 else bounds
        met = {names: figures for names, figures in tried.items() if within(figures, allowed)}
    if not met:
        raise _infeasible(target, limits, tried)
    losses = {names: _loss(pricing, names) for names in met}
    best = sorted(met, key=lambda names: losses[names])[:candidates]
    judge = judging(pricing, validation)
    names = min(best, key=lambda one: judge(one).loss)
    judged = judge(names)
    progress.say(
        f"{target.name}: {len(names)} replacements, {met[names]['latency_ms']:.3f} ms, validation "
        f"{100 * judged.accuracy:.2f} % before retraining"
    )
    return Choice(
        target=target.name,
        names=names,
        limits=limits,
        figures=met[names],
        accuracy=judged.accuracy,
        predicted_loss=losses[names],
        annealing_gap=gap,
        measured=len(tried),
        rounds=searches,
    )


@dataclass(frozen=True)
class Judgement:
    """How an induced network answers the validation split, before any retraining.

    Args:
        loss: what it loses by the house's own measure, ``house.rank_by``; lower is better.
        accuracy: share of right answers; of those that agree with the teacher's without labels.
    """

    loss: float
    accuracy: float


def judging(pricing: Pricing, validation: Split) -> Callable[[Names], Judgement]:
    """What judges induced networks on ``validation``; each runs once however often it is asked."""
    house = pricing.house
    device = compute_device()

    @cache
    def reference() -> Tensor:
        return logits(house.teacher.module, validation, device=device)

    @cache
    def judge(names: Names) -> Judgement:
        answer = logits(pricing.family.induce(names), validation, device=device)
        truth = validation.labels
        right = answer.argmax(1) == (reference().argmax(1) if truth is None else truth.cpu())
        accuracy = int(right.sum()) / len(right)
        if house.rank_by == "accuracy_loss":
            return Judgement(-accuracy, accuracy)
        known = reference().log_softmax(1)
        loss = F.kl_div(answer.log_softmax(1), known, reduction="batchmean", log_target=True)
        return Judgement(float(loss), accuracy)

    return judge


def judge_module(module: nn.Module, teacher: LayerGraph, split: Split) -> float:
    """Accuracy of ``module`` on ``split``, or agreement with the teacher without labels."""
    device = compute_device()
    if split.labelled:
        return accuracy(module, split, device=device)
    return agreement(module, teacher.module, split, device=device)


def _promising(
    problem: AdditiveProblem, bounds: Mapping[str, float], count: int
) -> Sequence[Selection]:
    """The best selections by the estimate; where it sees none feasible, the nearest to it."""
    try:
        return exact.solve(problem, bounds, count=count)
    except InfeasibleError:
        return [_nearest(problem, bounds)]


def _reach(
    tried: dict[Names, dict[str, float]],
    pricing: Pricing,
    known: Collection[Names],
    bounds: Mapping[str, float],
) -> None:
    """Measure also what should come lowest: it may do, and the lowest figure is told if not."""
    problem = pricing.problem(known)
    for names in (pricing.names(_nearest(problem, bounds).chosen), ()):
        if names not in tried:
            tried |= pricing.measure([names])


def _nearest(problem: AdditiveProblem, bounds: Mapping[str, float]) -> Selection:
    """The selection with the lowest figure of the limit that is hardest to reach."""
    reach = {metric: exact.lowest(problem, metric) / bound for metric, bound in bounds.items()}
    hardest = max(reach, key=lambda metric: reach[metric])
    column = problem.metrics.index(hardest)
    chosen = exact.minimise(problem, -problem.saving[:, column], {})[0]
    return make_selection(problem, chosen, bounds)


def _loss(pricing: Pricing, names: Names) -> float:
    return sum(pricing.family.losses[name] for name in names)


def _infeasible(
    target: Target, limits: Mapping[str, float], tried: Mapping[Names, Mapping[str, float]]
) -> InfeasibleError:
    lowest = {metric: min(figures[metric] for figures in tried.values()) for metric in limits}
    wanted = ", ".join(f"{metric} <= {bound:.4g}" for metric, bound in limits.items())
    reached = ", ".join(f"{metric} {value:.4g}" for metric, value in lowest.items())
    return InfeasibleError(
        f"target '{target.name}': no candidate of this house meets {wanted}; lowest measured: "
        f"{reached}; relax the limit, add smaller donors, or raise house.pruned",
        target=target.name,
        limits=limits,
        lowest=lowest,
    )
