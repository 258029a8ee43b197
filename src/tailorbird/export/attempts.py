"""Which ranges, and which layers in float32: attempts at a network in int8, the best one kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isnan
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from tailorbird.errors import ExportError
from tailorbird.export.correction import Means, correct_biases, inputs_of, means
from tailorbird.export.exporter import Written
from tailorbird.export.onnx import write_model
from tailorbird.export.quantise import (
    ARITHMETIC,
    PRODUCTS,
    Images,
    Ranges,
    answers,
    followed_by,
    int8_products,
    minmax,
    percentiles,
    quantised,
    readable,
    stranded,
    watched,
)

PERCENTS = (99.999, 99.99, 99.9)
"""Shares of values, in percent, that ranges by percentile hold."""

KEPT_SHARE = 4
"""At most one in so many layers stays in float32: beyond that little of the gain is left."""

AVERAGED = 64
"""Calibration images that means of channels are taken of."""

RANKED_ON = 16
"""Calibration images that layers are ranked on."""

MOST_RANKED = 128
"""With more layers than this only products are ranked."""


@dataclass(frozen=True)
class _Attempt:
    """How a file is made: ``kept`` are nodes in float32, the worst first."""

    calibration: str
    ranges: Ranges = field(repr=False)
    narrow: bool = False
    kept: tuple[str, ...] = ()


class Attempts:
    """Files in int8 of one network, made and judged until one is good enough.

    Args:
        model: as `tailorbird.export.quantise.prepared` gives it.
        images: that ranges are found on (n, C, H, W).
        metadata: what travels in the files.
        path: where files lie while they are judged.

    Raises:
        ExportError: where nothing of the network can be in int8.
    """

    def __init__(
        self, model: onnx.ModelProto, images: Images, metadata: Mapping[str, str], path: Path
    ) -> None:
        self._model, self._images, self._metadata, self._path = model, images, metadata, path
        if not any(node.op_type in PRODUCTS for node in model.graph.node):
            raise self._untouched()
        self._means: dict[str, Means] = {}
        self._judged: list[tuple[float, _Attempt]] = []

    def best(
        self, loss: Callable[[Path], float] | None, max_loss: float
    ) -> tuple[onnx.ModelProto, Written]:
        """The first file that loses no more than it may, else the one that loses least.

        First comes the calibration whose file is nearest to the network on the calibration images,
        by the mean absolute difference of outputs; then the same with weights of 7 bits, which no
        processor adds up with overflow; then 1, 2, 4, ... layers in float32, the worst first, at
        most a quarter of them.

        Args:
            loss: tells by how many points a file is worse than the network in float32; without it
                the first file it is.
            max_loss: points that it may be worse.
        """
        nearest = self._nearest()
        if int8_products(self._made(nearest)) == 0:
            raise self._untouched()
        if loss is None:
            return self._made(nearest), self._written(nearest, None)
        for attempt in self._in_turn(nearest):
            lost = loss(write_model(self._made(attempt), self._path, sync=False))
            self._judged.append((inf if isnan(lost) else lost, attempt))
            if lost <= max_loss:
                break
        lost, chosen = self._least()
        return self._made(chosen), self._written(chosen, lost)

    def _nearest(self) -> _Attempt:
        expected = answers(self._model, self._images)
        self._check_finite("outputs", expected)
        off = [
            (float(np.abs(answers(self._made(one), self._images) - expected).mean()), one)
            for one in self._calibrations()
        ]
        return min(off, key=lambda pair: pair[0])[1]

    def _calibrations(self) -> Iterator[_Attempt]:
        ends = minmax(self._model, self._images)
        for name, pair in ends.items():
            self._check_finite(f"values of {name}", pair)
        yield _Attempt("minmax", ends)
        cut = percentiles(self._model, self._images, ends, PERCENTS)
        for percent, ranges in zip(PERCENTS, cut, strict=True):
            yield _Attempt(f"percentile {percent:g}", ranges)

    def _in_turn(self, nearest: _Attempt) -> Iterator[_Attempt]:
        """Attempts, each worth its while only if those before lost too much."""
        yield nearest
        yield replace(nearest, narrow=True)
        base = self._least()[1]
        layers = self._layers()
        ranked, most = self._ranked(base, layers), max(1, len(layers) // KEPT_SHARE)
        count = 1
        while count < most:
            yield replace(base, kept=tuple(ranked[:count]))
            count *= 2
        yield replace(base, kept=tuple(ranked[:most]))

    def _least(self) -> tuple[float, _Attempt]:
        return min(self._judged, key=lambda pair: pair[0])

    def _layers(self) -> list[str]:
        """Nodes that may stay in float32 by themselves."""
        without = stranded(self._model)
        kinds = (*PRODUCTS, *ARITHMETIC)
        nodes = [n for n in self._model.graph.node if n.op_type in kinds and n.name not in without]
        if len(nodes) > MOST_RANKED:
            nodes = [node for node in nodes if node.op_type in PRODUCTS]
        return [node.name for node in nodes]

    def _ranked(self, base: _Attempt, layers: list[str]) -> list[str]:
        """Layers by how far the outputs move with that one alone in int8, the farthest first."""
        images = self._images[:RANKED_ON]
        expected, after = answers(self._model, images), followed_by(self._model, ("Relu", "Clip"))
        off = {}
        for layer in layers:
            only = [layer, *after.get(layer, ())]
            alone = quantised(self._model, base.ranges, only=only, narrow=base.narrow)
            off[layer] = float(np.abs(answers(alone, images) - expected).mean())
        return sorted(layers, key=lambda layer: -off[layer])

    def _made(self, attempt: _Attempt) -> onnx.ModelProto:
        model = quantised(self._model, attempt.ranges, kept=attempt.kept, narrow=attempt.narrow)
        correct_biases(model, self._model, self._means_of(attempt, model))
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, dict(self._metadata))
        return model

    def _means_of(self, attempt: _Attempt, made: onnx.ModelProto) -> Means:
        """Of what products take; rounding is the same for the same ranges."""
        if attempt.calibration not in self._means:
            seen = watched(self._model, self._images[:AVERAGED], inputs_of(self._model))
            self._means[attempt.calibration] = means(self._model, made, seen)
        return self._means[attempt.calibration]

    def _written(self, attempt: _Attempt, lost: float | None) -> Written:
        return Written(
            calibration=attempt.calibration + (", 7-bit weights" if attempt.narrow else ""),
            kept=readable(self._model, attempt.kept),
            loss=lost,
        )

    def _check_finite(self, what: str, values: npt.ArrayLike) -> None:
        if not np.isfinite(values).all():
            raise ExportError(
                f"{self._path.name}: {what} of the network are not finite on the calibration "
                "images; check its weights and the images' normalisation"
            )

    def _untouched(self) -> ExportError:
        found = ", ".join(sorted({node.op_type for node in self._model.graph.node})) or "nothing"
        return ExportError(
            f"{self._path.name}: nothing in it can be quantised: expected {', '.join(PRODUCTS)} "
            f"with weights of its own, found {found}; use float32 for it"
        )
