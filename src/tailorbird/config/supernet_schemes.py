"""Training schemes and samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near, short
from tailorbird.errors import ConfigError
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import MacsBalanced, SamplerOf, Sandwich, Uniform
from tailorbird.supernet.schemes import compofa
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.compofa import comp_ofa
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.phases import Phase
from tailorbird.supernet.schemes.progressive_shrinking import (
    ProgressiveShrinking,
    phases_for,
    scaled,
)
from tailorbird.supernet.schemes.scheme import Scheme

SAMPLERS: Mapping[str, SamplerOf] = {
    "uniform": Uniform,
    "sandwich": Sandwich,
    "macs-balanced": MacsBalanced,
    "sandwich-macs-balanced": partial(Sandwich, between=MacsBalanced),
}
"""Name -> what draws the subnets of a step. A new sampler is a line here."""

_OWN = ("name", "sampler")
_PHASE = {
    "epochs": Field(float | None, None),
    "learning_rate": Field(float | None, None),
    "warmup_epochs": Field(float | None, None),
    "networks": Field(int | None, None),
}


@dataclass(frozen=True)
class Named:
    """A scheme, what it was made from, and what has to be said about it."""

    scheme: Scheme
    plain: Mapping[str, object]
    sampler: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of scheme.

    Args:
        make: takes the settings as keywords.
        phases: those that the scheme has over a space, to be scaled to the ``epochs`` and
            ``learning_rate`` given; ``None`` where it has no phases.
    """

    make: Callable[..., Scheme]
    phases: Callable[[ArchitectureSpace], Sequence[Phase]] | None = None

    @property
    def fields(self) -> dict[str, Field]:
        """The settings as fields of a section."""
        start = {"kind": Field(str, "")}
        if self.phases is None:
            return start | fields_of(self.make, without=_OWN)
        length = fields_of(DepS)
        scale = {key: length[key] for key in ("epochs", "learning_rate")}
        own = fields_of(self.make, without=(*_OWN, "phases"))
        return start | scale | {"phases": Field(object, None)} | own


SCHEMES: Mapping[str, Kind] = {
    "deps": Kind(DepS),
    "progressive-shrinking": Kind(ProgressiveShrinking, phases_for),
    "bignas": Kind(BigNAS),
    "compofa": Kind(comp_ofa, compofa.phases_for),
}
"""Kind of scheme -> how it is made. A new scheme is a line here."""


def scheme(
    faults: Faults, raw: object, sampler: object, architectures: ArchitectureSpace | None
) -> Named | None:
    """Check and build the scheme; a text alone is its ``kind``.

    Args:
        faults: takes what is wrong.
        raw: the section ``scheme``.
        sampler: a name of `SAMPLERS`; the scheme's own when ``None``.
        architectures: the space that it is to fit; not checked when ``None``.
    """
    before = len(faults.found)
    path: Path_ = ("scheme",)
    raw = {"kind": raw} if isinstance(raw, str) else raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if sampler is not None and sampler not in SAMPLERS:
        faults.add(("sampler",), f"unknown sampler {short(sampler)}{near(str(sampler), SAMPLERS)}")
    if not isinstance(kind, str) or kind not in SCHEMES:
        there = isinstance(raw, dict) and "kind" in raw
        hint = near(str(kind), SCHEMES) if there else f"; expected one of {', '.join(SCHEMES)}"
        faults.add((*path, "kind") if there else path, f"unknown scheme {short(kind)}{hint}")
        return None
    one = SCHEMES[kind]
    values = faults.values(path, raw, one.fields)
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    plain["kind"] = values.pop("kind")
    chosen = {} if sampler not in SAMPLERS else {"sampler": SAMPLERS[str(sampler)]}
    if one.phases is not None:
        if architectures is None:
            return None
        phased = _with_phases(faults, path, values, one.phases(architectures))
        if phased is None:
            return None
        values = phased
    try:
        made = one.make(**values, **chosen)
        if architectures is not None and len(faults.found) == before:
            made.plan(architectures, 1)
    except ConfigError as error:
        _adopt(faults, path, error, kind)
        return None
    if len(faults.found) > before:
        return None
    name = None if sampler is None else str(sampler)
    return Named(made, plain, name, _notes(kind, architectures))


def _with_phases(
    faults: Faults,
    path: Path_,
    values: Mapping[str, object],
    phases: Sequence[Phase],
) -> dict[str, object] | None:
    """Settings with phases in place of the figures they are scaled to."""
    kept = {k: v for k, v in values.items() if k not in ("epochs", "learning_rate", "phases")}
    raw = values["phases"]
    names = {phase.name: phase for phase in phases}
    if raw is not None and not isinstance(raw, dict):
        faults.add((*path, "phases"), f"expected a phase's name and settings, got {short(raw)}")
        return None
    changes: dict[str, dict[str, object]] = {}
    for name, one in (raw or {}).items():
        if name not in names:
            faults.add((*path, "phases", name), f"unknown phase{near(name, names)}")
        elif one is not None:
            own = faults.values((*path, "phases", name), one, _PHASE)
            changes[name] = {key: value for key, value in own.items() if value is not None}
    left_out = {name for name, one in (raw or {}).items() if one is None}
    left = [phase for phase in phases if phase.name not in left_out]
    if not left:
        faults.add((*path, "phases"), "leaves no phase to train; keep at least one")
        return None
    try:
        lengths = {key: cast("float", values[key]) for key in ("epochs", "learning_rate")}
        made = scaled(left, **lengths)
    except ConfigError as error:
        faults.adopt(path, error, prefix="scaled.")
        return None
    return kept | {"phases": tuple(replace(p, **changes.get(p.name, {})) for p in made)}  # type: ignore[arg-type]  # their types have been checked


def _adopt(faults: Faults, path: Path_, error: ConfigError, kind: str) -> None:
    """Note a scheme's faults at their keys; a phase's at the phase."""
    for problem in error.problems:
        place, colon, rest = problem.removeprefix(f"{kind}.").partition(": ")
        keys = place.split(".")
        if not problem.startswith(f"{kind}.") or not colon:
            faults.add(path, problem)
        elif len(keys) == 1:
            faults.add((*path, *keys), rest)
        else:
            way = f"; write '{keys[0]}: null' to leave the phase out" if keys[1] == "epochs" else ""
            faults.add((*path, "phases", *keys), f"{rest}{way}")


def _notes(kind: str, architectures: ArchitectureSpace | None) -> tuple[str, ...]:
    """What a user should know about a scheme over a space, though it isn't wrong."""
    ratios = () if architectures is None else architectures.official.keys.get("e", ())
    if kind != "compofa" or not any(entry.chooses for entry in ratios):
        return ()
    assert architectures is not None  # it has ratios
    return (
        f"compofa is meant for spaces whose depth sets the expand ratio; in {architectures.name} "
        "it opens all subnets at once, which is progressive shrinking without its order",
    )
