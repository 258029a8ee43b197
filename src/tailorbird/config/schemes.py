"""Training schemes and samplers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tailorbird.config.reader import Path_
from tailorbird.config.sections import Faults, Field, fields_of, near, near_or_own, short
from tailorbird.errors import ConfigError, Fault
from tailorbird.factories import (
    call_factory,
    is_factory,
    make_importable,
    of_kind,
    own,
    resolve_factory,
)
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.samplers import MacsBalanced, Region, Sampler, SamplerOf, Sandwich, Uniform
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

_PLAN = ("name", "sampler")
_OWN = {"kind": Field(str), "arguments": Field(dict[str, object] | None, None)}
_PHASE = {
    "epochs": Field(float | None, None),
    "learning_rate": Field(float | None, None),
    "warmup_epochs": Field(float | None, None),
    "networks": Field(int | None, None),
}


@dataclass(frozen=True)
class NamedSampler:
    """What makes samplers, and how that was written: a name, or ``kind`` and ``arguments``."""

    make: SamplerOf
    written: str | Mapping[str, object]

    def plain(self) -> object:
        """As it was written."""
        return self.written


@dataclass(frozen=True)
class NamedScheme:
    """A scheme, what it was made from, and what has to be said about it."""

    scheme: Scheme
    written: Mapping[str, object]
    notes: tuple[str, ...] = ()

    def plain(self) -> object:
        """As it would be written again, with every default."""
        return self.written


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
            return start | fields_of(self.make, without=_PLAN)
        length = fields_of(DepS)
        scale = {key: length[key] for key in ("epochs", "learning_rate")}
        own = fields_of(self.make, without=(*_PLAN, "phases"))
        return start | scale | {"phases": Field(object, None)} | own


SCHEMES: Mapping[str, Kind] = {
    "deps": Kind(DepS),
    "progressive-shrinking": Kind(ProgressiveShrinking, phases_for),
    "bignas": Kind(BigNAS),
    "compofa": Kind(comp_ofa, compofa.phases_for),
}
"""Kind of scheme -> how it is made. A new scheme is a line here."""


def sampler(faults: Faults, path: Path_, raw: object, *, base: Path) -> NamedSampler | None:
    """Check what draws subnets: a name of `SAMPLERS`, or one of the user's own."""
    if raw is None:
        return None
    kind = raw.get("kind") if isinstance(raw, dict) else raw
    if isinstance(raw, str) and raw in SAMPLERS:
        return NamedSampler(SAMPLERS[raw], raw)
    if not isinstance(kind, str) or not is_factory(kind):
        faults.add(path, f"unknown sampler {short(kind)}{near_or_own(str(kind), SAMPLERS)}")
        return None
    before = len(faults.found)
    values: dict[str, Any] = faults.values(path, {"kind": kind} if raw == kind else raw, _OWN)
    make_importable(base)
    try:
        resolve_factory(kind)
    except ConfigError as error:
        faults.adopt(path, error)
    if len(faults.found) > before:
        return None

    def make(region: Region, count: int) -> Sampler:
        made = call_factory(kind, values["arguments"], region, count)
        found: Sampler = of_kind(made, kind, Sampler)
        return found

    return NamedSampler(make, raw if isinstance(raw, str) else values)


def scheme(
    faults: Faults,
    raw: object,
    sampler: NamedSampler | None,
    architectures: ArchitectureSpace | None,
    *,
    base: Path,
) -> NamedScheme | None:
    """Check and build the scheme; a text alone is its ``kind``.

    Args:
        faults: takes what is wrong.
        raw: the section ``scheme``.
        sampler: of its subnets; the scheme's own when ``None``.
        architectures: the space that it is to fit; not checked when ``None``.
        base: the job file's folder, where modules of the user's own are found.
    """
    before = len(faults.found)
    path: Path_ = ("scheme",)
    raw = {"kind": raw} if isinstance(raw, str) else raw
    kind = raw.get("kind") if isinstance(raw, dict) else None
    known = isinstance(kind, str) and (kind in SCHEMES or is_factory(kind))
    if not isinstance(kind, str) or not known:
        there = isinstance(raw, dict) and "kind" in raw
        hint = near_or_own(str(kind) if there else "", SCHEMES)
        faults.add((*path, "kind") if there else path, f"unknown scheme {short(kind)}{hint}")
        return None
    values: dict[str, Any] = faults.values(path, raw, scheme_fields(kind))
    written = {**values, "kind": kind}
    chosen = {} if sampler is None else {"sampler": sampler.make}
    try:
        if kind not in SCHEMES:
            make_importable(base)
            made: Scheme | None = _own_scheme(kind, values["arguments"] or {}, chosen)
        else:
            made = _known_scheme(faults, path, kind, values | chosen, architectures)
        if made is not None and architectures is not None and len(faults.found) == before:
            made.plan(architectures, 1)
    except ConfigError as error:
        _adopt(faults, path, error)
        return None
    if made is None or len(faults.found) > before:
        return None
    return NamedScheme(made, written, _notes(kind, architectures))


def scheme_fields(kind: str) -> dict[str, Field]:
    """The settings of a scheme; ``arguments`` for one of the user's own."""
    return SCHEMES[kind].fields if kind in SCHEMES else dict(_OWN)


def _own_scheme(kind: str, given: Mapping[str, object], chosen: Mapping[str, object]) -> Scheme:
    if chosen and "sampler" not in inspect.signature(resolve_factory(kind)).parameters:
        raise ConfigError(f"{kind} takes no sampler, and one is given; remove it")
    made: Scheme = own(kind, Scheme, {**given, **chosen})
    return made


def _known_scheme(
    faults: Faults,
    path: Path_,
    kind: str,
    values: Mapping[str, object],
    architectures: ArchitectureSpace | None,
) -> Scheme | None:
    one, given = SCHEMES[kind], {key: value for key, value in values.items() if key != "kind"}
    if one.phases is None:
        return one.make(**given)
    if architectures is None:
        return None
    phased = _with_phases(faults, path, given, one.phases(architectures))
    return None if phased is None else one.make(**phased)


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
        faults.adopt(path, error)
        return None
    return kept | {"phases": tuple(replace(p, **changes.get(p.name, {})) for p in made)}  # type: ignore[arg-type]  # their types have been checked


def _adopt(faults: Faults, path: Path_, error: ConfigError) -> None:
    """Note a scheme's faults at their keys; a phase's at the phase."""
    for problem in error.problems:
        if not isinstance(problem, Fault):
            faults.add(path, problem)
            continue
        _, *keys = problem.place
        phase = ("phases",) if len(keys) > 1 else ()
        way = f"; write '{keys[0]}: null' to leave the phase out" if keys[1:] == ["epochs"] else ""
        faults.add((*path, *phase, *keys), f"{problem.what}{way}")


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
