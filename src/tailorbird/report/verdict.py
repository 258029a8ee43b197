"""What to do about one target, in a sentence: ship this file, or what can be had instead."""

from __future__ import annotations

from math import sqrt

from tailorbird.report.record import Point, RunReport, TargetResult, is_figure
from tailorbird.report.words import bare, bounds, percent, printable, shortfall, significant

LATENCY, PLAIN = "latency_ms", "float32"

_CERTAIN = 1.96
"""Standard deviations either way that hold 95 % of a normal distribution."""


SHOWN = 4
"""Layers that are named."""


def verdict(report: RunReport, target: TargetResult) -> str:
    """The word on one target, without its name.

    Example:
        >>> edge = TargetResult(
        ...     name="edge", device="cpu", limits={"latency_ms": 2.0}, asked={"latency_ms": "0.5x"},
        ...     measured={"latency_ms": 1.6, "teacher_latency_ms": 4.0}, met=True, accuracy=0.93,
        ...     teacher_accuracy=0.94, onnx="students/edge/model.onnx")
        >>> run = RunReport(run="a", seed=0, targets=(edge,), judged=1000, images="test images")
        >>> print(verdict(run, edge))
        ship students/edge/model.onnx: 1.600 of 2.000 ms (0.5x), 2.5x faster than the teacher, \
-1.00 +- 2.16 points on 1000 test images
    """
    if target.undecided:
        return f"{shortfall(target)}; {target.onnx}"
    if not target.met:
        return f"not met: {shortfall(target)}"
    limits = ", ".join(
        f"{bare(metric, target.measured.get(metric))}{_error(target, metric)} of "
        f"{limit(target, metric)}"
        for metric in (*target.limits, *target.least)
    )
    if target.precision != PLAIN:
        limits += f", {target.precision}"
    if target.as_is is not None:
        limits += f", {printable(target.as_is)} as it is"
    if target.found_for is not None:
        limits += f", found for {printable(target.found_for)}"
    parts = [limits, _faster(report, target), _accuracy(report, target)]
    return f"ship {target.onnx}: {', '.join(part for part in parts if part)}"


def limit(target: TargetResult, metric: str) -> str:
    """A limit in its unit, and as it was asked where that was otherwise.

    Example:
        >>> edge = TargetResult(name="a", device="b", limits={}, met=True,
        ...                     least={"accuracy": 0.92}, asked={"accuracy": "accuracy_loss <= 1"})
        >>> limit(edge, "accuracy")
        'at least 92.00 % (accuracy_loss <= 1)'
    """
    asked = target.asked.get(metric)
    bound = bounds(target)[metric].replace(">=", "at least")
    return f"{bound} ({asked})" if asked else bound


def as_good(report: RunReport, target: TargetResult) -> Point | None:
    """A network as it is that keeps the target's limits and is no less accurate than its student.

    The most accurate one, the fastest of equals; ``None`` where there is none, or where what it
    needs of a limited metric is not known. Where an accuracy was asked for and no latency, the
    student is as fast as can be, and a slower network is no alternative.
    """
    if target.accuracy is None:
        return None
    fit = [
        point
        for point in [*report.teacher.values(), *report.donors]
        if point.device == target.device
        and point.name != target.as_is
        and is_figure(point.accuracy)
        and point.accuracy >= target.accuracy
        and all(_keeps(point, metric, bound) for metric, bound in _at_most(target).items())
    ]
    return max(fit, key=lambda p: (p.accuracy or 0, -(p.latency_ms or 0)), default=None)


def hint(report: RunReport, target: TargetResult) -> str:
    """A sentence on a network that needs no student, or nothing."""
    point = as_good(report, target)
    if point is None:
        return ""
    own = "the student" if target.as_is is None else printable(target.as_is)
    return (
        f"{printable(point.name)} as it is keeps this limit too, with {percent(point.accuracy)} % "
        f"where {own} has {percent(target.accuracy)} %"
    )


def remarks(report: RunReport, target: TargetResult) -> list[str]:
    """What else is to be known of a target, a sentence each.

    Example:
        >>> edge = TargetResult(name="a", device="b", limits={}, met=True, precision="int8",
        ...                     kept=("stem", "head"), notes=("float16: no kernel",))
        >>> remarks(RunReport(run="a", seed=0, targets=(edge,)), edge)
        ['2 layers are in float32: stem, head', 'float16: no kernel']
    """
    kept = ""
    if target.kept:
        names = ", ".join(map(printable, target.kept[:SHOWN]))
        more = ", ..." if len(target.kept) > SHOWN else ""
        many = len(target.kept) > 1
        kept = f"{len(target.kept)} layer{'s are' if many else ' is'} in float32: {names}{more}"
    notes = map(printable, target.notes)
    return [*filter(None, (kept, hint(report, target), rebuilding(target), *notes))]


def rebuilding(target: TargetResult) -> str:
    """What rebuilding the student takes beside its files, or why it can't be; mostly nothing.

    Example:
        >>> edge = TargetResult(name="a", device="b", limits={}, met=True, code=("nets:Gate",))
        >>> rebuilding(edge)
        'rebuilding the network from student.json needs code: nets:Gate'
    """
    if target.unstored is not None:
        return f"there is the exported file only, no student.json: {target.unstored}"
    if target.code:
        return f"rebuilding the network from student.json needs code: {', '.join(target.code)}"
    return ""


def _at_most(target: TargetResult) -> dict[str, float]:
    own = target.measured.get(LATENCY)
    return {**({LATENCY: own} if target.least and own is not None else {}), **target.limits}


def _keeps(point: Point, metric: str, bound: float) -> bool:
    value = getattr(point, metric, None)
    return is_figure(value) and value <= bound


def _error(target: TargetResult, metric: str) -> str:
    """Half of the interval that holds a latency, where sessions were repeated to know it."""
    known = target.certainty
    if metric != LATENCY or known is None or known.low_ms is None or known.high_ms is None:
        return ""
    half = (known.high_ms - known.low_ms) / 2
    return f" +- {significant(half, 2)}" if half else ""


def _faster(report: RunReport, target: TargetResult) -> str:
    own, whole = target.measured.get(LATENCY), target.measured.get("teacher_latency_ms")
    if not own or not whole:
        return ""
    times = whole / own
    words = f"{times:.1f}x faster than" if times >= 1.05 else "as fast as"
    return f"{words} the {printable(report.reference)}"


def _accuracy(report: RunReport, target: TargetResult) -> str:
    """The change of accuracy with its 95 % error, that of two shares of so many images each."""
    own, whole, n = target.accuracy, target.teacher_accuracy, report.judged
    if own is None:
        return ""
    if whole is None or not n:
        return f"{percent(own)} %"
    error = _CERTAIN * sqrt((own * (1 - own) + whole * (1 - whole)) / n)
    return f"{100 * (own - whole):+.2f} +- {100 * error:.2f} points on {n} {report.images}"
