"""In which precisions a target's place is looked at."""

from __future__ import annotations

from collections.abc import Sequence

from tailorbird.device import Precision
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.export.exporters import Exporter, exporter_for
from tailorbird.measure.guarded import format_of, precisions_of
from tailorbird.targets import PLAIN, Place, Target


def precisions_for(target: Target) -> tuple[Precision, ...]:
    """What a target's file may compute in, float32 first: what it says, or all that its device
    runs.

    A device that does not answer is asked again when it is tried; float32 is assumed until then.
    """
    if target.place.device is None:
        return (PLAIN,)
    if target.precisions is not None:
        wanted: Sequence[Precision] = target.precisions
    else:
        try:
            wanted = precisions_of(target.place.device)
        except MeasurementError:
            wanted = (PLAIN,)
    return tuple(sorted(wanted, key=lambda one: one != PLAIN))


def places_for(target: Target, exporter: Exporter) -> tuple[Place, ...]:
    """A target's place in each precision that it may have, float32 first.

    Args:
        target: where a precision is asked for, it has to be one that can be had.
        exporter: makes files of its own format and precision; others come from `exporter_for`.

    Raises:
        ConfigError: for a precision that was asked for and can't be had.
    """
    device, wanted = target.place.device, precisions_for(target)
    if device is None:
        return (target.place,)
    try:
        what, able = format_of(device), precisions_of(device)
    except MeasurementError:  # it is told when the device is tried
        return (target.place,)
    faults, found = [], []
    for precision in wanted:
        if precision not in able:
            faults.append(f"its device runs {', '.join(able)}, got {precision}")
            continue
        try:
            exporter_for(what, precision, own=exporter)
        except ExportError as error:
            if target.precisions is not None:
                faults.append(str(error))
            continue
        found.append(target.place.at(precision))
    if faults:
        raise ConfigError([f"target '{target.name}': precision: {fault}" for fault in faults])
    return tuple(found) or (target.place,)
