"""How figures and names are written for people, the same in table, picture and page."""

from __future__ import annotations

from tailorbird.report.record import Certainty, Point, TargetResult, is_figure

NOTHING = "-"
"""Stands where there is no figure."""

_UNITS = {"latency_ms": "ms", "size_mb": "MB", "peak_memory_mb": "MB RAM", "accuracy": "%"}
_COUNTS = {"params": "params", "macs": "MACs"}


def printable(text: object, *, limit: int = 200) -> str:
    """One line without control characters, cut at ``limit`` characters.

    Example:
        >>> printable("edge\\x1b[31m\\nbox")
        'edge?[31m?box'
    """
    line = "".join(char if char.isprintable() else "?" for char in str(text))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def significant(value: float, digits: int = 4) -> str:
    """So many significant digits, no exponent unless the value is tiny.

    Example:
        >>> significant(0.75041), significant(12.345), significant(123456.0), significant(2.618, 3)
        ('0.7504', '12.35', '123456', '2.62')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1:
        return f"{value:.{max(digits - len(str(int(abs(value)))), 0)}f}"
    return f"{value:.{digits}f}" if abs(value) >= 1e-2 else f"{value:.{digits - 2}g}"


def count(value: float, digits: int = 4) -> str:
    """A count in thousands, millions or billions.

    Example:
        >>> count(999), count(853018), count(125.75e6, 3)
        ('999', '853.0k', '126M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{significant(value / size, digits)}{letter}"
    return significant(value, digits) if value % 1 else f"{value:.0f}"


def bare(metric: str, value: float | None, digits: int = 4) -> str:
    """A figure without its unit.

    Example:
        >>> bare("latency_ms", 1.5), bare("macs", 2e6, 3), bare("macs", None)
        ('1.500', '2.00M', '-')
        >>> bare("accuracy", 0.97)
        '97.00'
    """
    if not is_figure(value):
        return NOTHING
    if metric == "accuracy":
        return percent(value)
    return count(value, digits) if metric in _COUNTS else significant(value, digits)


def figure(metric: str, value: float | None) -> str:
    """A figure with its unit, which tells the metric.

    Example:
        >>> figure("latency_ms", 1.5), figure("params", 853018), figure("size_mb", None)
        ('1.500 ms', '853.0k params', '-')
    """
    if not is_figure(value):
        return NOTHING
    return f"{bare(metric, value)} {_UNITS.get(metric) or _COUNTS.get(metric) or metric}"


def bounds(target: TargetResult) -> dict[str, str]:
    """Metric -> its bound in words, for all limits of a target.

    Example:
        >>> bounds(TargetResult(name="a", device="b", limits={"latency_ms": 1.5},
        ...                     least={"accuracy": 0.97}, met=True))
        {'latency_ms': '1.500 ms', 'accuracy': '>= 97.00 %'}
    """
    least = {metric: f">= {figure(metric, value)}" for metric, value in target.least.items()}
    return {metric: figure(metric, value) for metric, value in target.limits.items()} | least


def percent(share: float | None) -> str:
    """An accuracy in percent with two decimals, without the sign.

    Example:
        >>> percent(0.94371), percent(None)
        ('94.37', '-')
    """
    return f"{share * 100:.2f}" if is_figure(share) else NOTHING


def minutes(value: float) -> str:
    """Minutes, one decimal below ten.

    Example:
        >>> minutes(0.04), minutes(12.3)
        ('0.0', '12')
    """
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def summary(point: Point, kind: str) -> str:
    """A network's figures in one line."""
    accuracy = f"{percent(point.accuracy)} % {kind}" if is_figure(point.accuracy) else ""
    parts = (
        accuracy,
        figure("latency_ms", point.latency_ms) if is_figure(point.latency_ms) else "",
        figure("params", point.params),
        figure("macs", point.macs),
        figure("size_mb", point.size_mb),
    )
    return ", ".join(part for part in parts if part)


def shortfall(target: TargetResult) -> str:
    """Why a target is not met and what is the lowest reachable, in one line."""
    reached = ", ".join(figure(metric, value) for metric, value in target.lowest.items())
    reason = target.reason or _missed(target)
    if target.undecided:
        return reason
    return f"{reason}; lowest reachable: {reached}" if reached else reason


def met(target: TargetResult) -> str:
    """Whether limits are kept, in a word.

    Example:
        >>> met(TargetResult(name="a", device="b", limits={}, met=False, undecided=True))
        'undecided'
    """
    return "yes" if target.met else "undecided" if target.undecided else "no"


def undecided(latency_ms: float, bound_ms: float, certainty: Certainty) -> str:
    """Why a latency's limit is neither met nor missed, and what to do.

    Example:
        >>> from tailorbird.report.record import Session
        >>> twice = (Session(own_ms=2.0, reference_ms=4.0, spread_ms=0.1),) * 2
        >>> undecided(2.0, 2.1, Certainty(sessions=twice, low_ms=1.8, high_ms=2.2))
        'undecided: 2.000 ms is between 1.800 and 2.200 ms as far as 2 sessions tell, the limit is \
2.100 ms; run it again when the device is quiet, or ask for more sessions'
    """
    between = ""
    if certainty.low_ms is not None and certainty.high_ms is not None:
        low, high = bare("latency_ms", certainty.low_ms), figure("latency_ms", certainty.high_ms)
        between = f" is between {low} and {high}"
    return (
        f"undecided: {figure('latency_ms', latency_ms)}{between} as far as "
        f"{len(certainty.sessions)} sessions tell, the limit is {figure('latency_ms', bound_ms)}; "
        "run it again when the device is quiet, or ask for more sessions"
    )


def _missed(target: TargetResult) -> str:
    """Which limits the figures miss, and by what."""
    found = target.measured
    missed = [
        f"{figure(metric, found[metric])} measured, limit {bare(metric, bound)}"
        for metric, bound in target.limits.items()
        if metric in found and found[metric] > bound
    ] + [
        f"{figure(metric, found[metric])} measured, at least {bare(metric, bound)} wanted"
        for metric, bound in target.least.items()
        if metric in found and found[metric] < bound
    ]
    return ", ".join(missed) or "no student was made"


def in_words(precision: str) -> str:
    """A precision in a sentence; nothing of float32, which goes without saying.

    Example:
        >>> "the teacher as it is" + in_words("int8")
        'the teacher as it is in int8'
    """
    return "" if precision == "float32" else f" in {precision}"
