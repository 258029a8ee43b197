"""What is smaller is what is faster: alternatives are timed before they are distilled.

Fewer multiply-accumulates are not fewer milliseconds: a merged convolution has more and is faster,
a depthwise one has less and may be slower. Where the devices that a house is built for are known,
candidates are kept with more MACs than their block has, their structures timed on these devices,
and those turned away that are faster than their block nowhere.

Figures go where `tailorbird.house.candidates` will look for them, so each structure is timed once,
and after a kill the rest is.

Cost: an export and a session's runs for each distinct structure and device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from tailorbird.errors import ExportError, MeasurementError
from tailorbird.fit.candidates import Timing
from tailorbird.graph.trace import LayerGraph
from tailorbird.house.alternative import Alternative, Sample
from tailorbird.house.sample import HEAVIER, fewer_macs
from tailorbird.house.structures import TOGETHER, structures_of
from tailorbird.progress import Progress, Silent

SLOWER = "no faster than the teacher's block on any device"

Timings = Mapping[str, Callable[[], Timing]]
"""Key of a place -> opens what times networks there in float32."""


def keep_faster(
    teacher: LayerGraph, sample: Sample, timings: Timings, progress: Progress | None = None
) -> Sample:
    """The sample without alternatives that are smaller than their block on none of the devices.

    Smaller is what is faster there; where a device fails, or none is given, what has fewer MACs.

    Args:
        teacher: the traced teacher.
        sample: with alternatives that may be heavier than their blocks.
        timings: by the keys of their places.
        progress: told about devices that fail.

    Returns:
        The alternatives that are left under their names, those turned away counted by the reason.
    """
    shown, devices = progress or Silent(), list[str]()
    smaller, failed = set[str](), not timings
    for key, make in timings.items():
        try:
            smaller |= _faster(teacher, sample, make())
            devices.append(key)
        except (MeasurementError, ExportError) as error:
            failed = True
            shown.say(f"{key}: what has fewer MACs is taken as smaller, timing failed: {error}")
    if failed:
        smaller |= {a.name for a in sample.alternatives if _lighter(a, sample)}
    left = tuple(a for a in sample.alternatives if a.name in smaller)
    turned_away = Counter({SLOWER if devices else HEAVIER: len(sample.alternatives) - len(left)})
    return replace(
        sample,
        alternatives=left,
        modules={a.name: sample.modules[a.name] for a in left},
        rejections=sample.rejections + turned_away,
        pending=False,
        devices=tuple(devices),
    )


def _faster(teacher: LayerGraph, sample: Sample, timing: Timing) -> set[str]:
    """Names of alternatives that are faster than their block at a place."""
    structures = structures_of(teacher, sample, sample.modules)
    timed = timing.measure(
        {name: partial(structures.networks.__getitem__, name) for name in structures.networks},
        title="measure candidates",
        together=TOGETHER,
    )
    saved = structures.saved({name: one.median_ms for name, one in timed.items()})
    return {name for name, milliseconds in saved.items() if milliseconds > 0}


def _lighter(alternative: Alternative, sample: Sample) -> bool:
    return fewer_macs(alternative.macs, sample.blocks[alternative.block].macs) is None
