"""The accuracy predictors published with the once-for-all supernets, in plain numpy.

Both are multilayer perceptrons with ReLU on a one-hot encoding of the architecture (Cai et al.,
Once-for-All, ICLR 2020); their weights come as a safetensors file. Input columns:

- MobileNetV3, 128: kernel (3, 5, 7) of 20 blocks, expand ratio (3, 4, 6) of 20 blocks, zeros where
  a block is beyond its stage's depth; then 8 bins of 16 pixels for the resolution, from 112 on.
- ResNet-50D, 82: 8 resolutions, 2 for the stem without and with its extra block, 6 width
  multipliers of 3, expand ratio (0.2, 0.25, 0.35) of 18 blocks. The last layer has no bias; the
  mean accuracy of the training data, ``base_acc``, is added instead.

The scale is the predictor's own: it ranks architectures and is no ImageNet accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.family import Floats
from tailorbird.space import Genomes
from tailorbird.supernet.architecture import ArchitectureSpace
from tailorbird.supernet.official import Entry
from tailorbird.threads import one_thread

Weights = npt.NDArray[np.float32]
Tensors = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class _Part:
    """Columns for the first ``count`` positions of a key: column k is 1 where the value lies in
    ``values[k] <= value < values[k] + span``."""

    key: str
    count: int
    values: tuple[float, ...]
    span: float = 1e-6
    first: bool = False  # the key's further positions have no column


@dataclass(frozen=True)
class _Layout:
    """How a predictor's file is written: parts in the order of the columns, and tensor names."""

    name: str
    parts: tuple[_Part, ...]
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    base: str | None = None

    @property
    def width(self) -> int:
        return sum(part.count * len(part.values) for part in self.parts)


_LAYOUTS = (
    _Layout(
        name="MobileNetV3",
        parts=(
            _Part("ks", 20, (3, 5, 7)),
            _Part("e", 20, (3, 4, 6)),
            _Part("r", 1, tuple(range(112, 240, 16)), span=16),
        ),
        weights=("0.weight", "2.weight", "4.weight", "6.weight"),
        biases=("0.bias", "2.bias", "4.bias", "6.bias"),
    ),
    _Layout(
        name="ResNet-50D",
        parts=(
            _Part("r", 1, (128, 144, 160, 176, 192, 224, 240, 256)),
            _Part("d", 1, (0, 2), first=True),
            _Part("w", 6, (0, 1, 2)),
            _Part("e", 18, (0.2, 0.25, 0.35)),
        ),
        weights=("layers.0.0.weight", "layers.1.0.weight", "layers.2.0.weight", "layers.3.weight"),
        biases=("layers.0.0.bias", "layers.1.0.bias", "layers.2.0.bias"),
        base="base_acc",
    ),
)

_CHUNK = 512  # rows whose activations stay in a core's cache


class OfaPredictor:
    """Predicted accuracy of a space's genomes by one of the two published networks.

    About 6.5 ms per 1,000 genomes on one core of a server, nine tenths in the matrix products.

    Example:
        >>> from tailorbird.supernet.architecture import load_space
        >>> space = load_space("ofa-mbv3-w1.2")
        >>> zeros = [np.zeros((1, 128)), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))]
        >>> tensors = {f"{2 * i}.weight": w.astype(np.float32) for i, w in enumerate(zeros)}
        >>> tensors |= {f"{2 * i}.bias": np.ones(1, np.float32) for i in range(4)}
        >>> OfaPredictor(tensors, space).predict(space.space.sample(2, np.random.default_rng(0)))
        array([1., 1.])
    """

    def __init__(
        self, tensors: Tensors, space: ArchitectureSpace, *, source: str = "predictor"
    ) -> None:
        """Check the tensors against the layouts, and the space against the layout found.

        Args:
            tensors: name -> array, as in the published files.
            space: whose genomes are to be judged.
            source: names the tensors in errors.

        Raises:
            ConfigError: neither layout, missing tensors, wrong shapes, values that aren't finite,
                or a space that the inputs can't express; all faults at once.
        """
        layout = _layout_of(tensors, source)
        faults = [*_tensor_faults(tensors, layout, source), *_space_faults(space, layout, source)]
        if faults:
            raise ConfigError(faults)
        self._genes = len(space.space.choices)
        self._encoder = _Encoder(space, layout)
        self._layers = [np.asarray(tensors[n], np.float32).T.copy() for n in layout.weights]
        biases = [np.asarray(tensors[name], np.float32) for name in layout.biases]
        if layout.base is not None:
            biases.append(np.asarray(tensors[layout.base], np.float32))
        # relu(x + b) = max(x, -b) + b: what is added moves into the next bias, one pass less.
        self._floors, added = [], np.zeros(layout.width, np.float32)
        for layer, bias in zip(self._layers, biases, strict=True):
            added = bias + added @ layer
            self._floors.append(-added)

    @staticmethod
    def from_file(path: Path, space: ArchitectureSpace) -> OfaPredictor:
        """Read a published predictor; which of the two it is shows in its tensors' names.

        Raises:
            StoreError: when the file is missing or no safetensors file.
            ConfigError: see `OfaPredictor`.
        """
        return OfaPredictor(read_tensors(path), space, source=str(path))

    @one_thread()
    def predict(self, genomes: Genomes) -> Floats:
        """Predicted accuracies (n,) of canonical genomes (n, genes), computed in float32.

        Raises:
            SpaceError: another number of genes, or a prediction that isn't finite.
        """
        if genomes.ndim != 2 or genomes.shape[1] != self._genes:
            raise SpaceError(f"genomes: expected shape (n, {self._genes}), got {genomes.shape}")
        predicted = np.empty(len(genomes))
        rows = min(_CHUNK, len(genomes))
        buffers = [np.empty((rows, layer.shape[1]), np.float32) for layer in self._layers]
        for start in range(0, len(genomes), _CHUNK):
            values = self._encoder.one_hot(genomes[start : start + _CHUNK])
            for layer, floor, buffer in zip(
                self._layers[:-1], self._floors[:-1], buffers, strict=False
            ):
                hidden = np.matmul(values, layer, out=buffer[: len(values)])
                values = np.maximum(hidden, floor, out=hidden)
            last = np.matmul(values, self._layers[-1], out=buffers[-1][: len(values)])
            predicted[start : start + _CHUNK] = last[:, 0] - self._floors[-1]
        wrong = ~np.isfinite(predicted)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise SpaceError(
                f"predicted accuracy isn't finite for {wrong.sum()} of {len(wrong)} genomes; "
                f"first: row {first}, {genomes[first].tolist()}"
            )
        return predicted

    __call__ = predict


def read_tensors(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """All tensors of a safetensors file.

    Raises:
        StoreError: when the file can't be read, is damaged or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(Path(path).read_bytes()))
    except OSError as error:
        raise StoreError(f"can't read {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path}: expected a safetensors file of numbers that numpy knows, got something else "
            f"({error}); convert it with safetensors.numpy.save_file"
        ) from error


class _Encoder:
    """Genomes to one-hot rows: each position's column is looked up at a flat index of the gene
    and of what makes it active; inactive positions point at a spare column that is cut off."""

    def __init__(self, space: ArchitectureSpace, layout: _Layout) -> None:
        sizes = space.space.sizes
        self._width = layout.width
        entries = _entries(space, layout)
        strides = np.zeros((len(sizes), len(entries)), np.float32)
        offsets: list[int] = []
        columns: list[int] = []
        start = 0
        for position, (part, entry) in enumerate(entries):
            condition = entry.condition
            ways = 1 if condition is None else int(sizes[condition.gene])
            offsets.append(len(columns))
            if entry.gene is not None:
                strides[entry.gene, position] += ways
            if condition is not None:
                strides[condition.gene, position] += 1
            for value in entry.values:
                column = start + int(np.argmax(_holds(part, value)))
                least = 0 if condition is None else condition.least
                columns += [column if way >= least else self._width for way in range(ways)]
            start += len(part.values)
        self._strides, self._offsets = strides, np.array(offsets, np.float32)
        self._columns = np.array(columns, np.intp)

    def one_hot(self, genomes: Genomes) -> Weights:
        """Input (n, width) of the genomes."""
        spare = self._width + 1
        rows = np.zeros((len(genomes), spare), np.float32)
        # Indices are small whole numbers, exact in float32, and its products are much faster.
        index = genomes.astype(np.float32) @ self._strides + self._offsets
        places = self._columns.take(index.astype(np.intp))
        places += np.arange(0, spare * len(genomes), spare)[:, None]
        rows.ravel()[places] = 1.0
        return rows[:, : self._width]


def _holds(part: _Part, value: float) -> npt.NDArray[np.bool_]:
    """Which of the part's columns are 1 for the value."""
    above = value - np.array(part.values, dtype=np.float64)
    return (above > -1e-6) & (above < part.span - (1e-6 if part.span >= 1 else 0))


def _entries(space: ArchitectureSpace, layout: _Layout) -> list[tuple[_Part, Entry]]:
    """The positions of the official form in the order of the columns."""
    keys = space.official.keys
    return [(part, entry) for part in layout.parts for entry in keys[part.key][: part.count]]


def _layout_of(tensors: Tensors, source: str) -> _Layout:
    """The layout that most of the tensors' names belong to."""
    best = max(_LAYOUTS, key=lambda layout: len(_names(layout) & tensors.keys()))
    if not _names(best) & tensors.keys():
        known = "; ".join(f"{x.name}: {', '.join(sorted(_names(x)))}" for x in _LAYOUTS)
        raise ConfigError(
            f"{source}: expected the tensors of a published predictor ({known}), got "
            f"{_listed(sorted(tensors))}"
        )
    return best


def _names(layout: _Layout) -> set[str]:
    base = () if layout.base is None else (layout.base,)
    return {*layout.weights, *layout.biases, *base}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _tensor_faults(tensors: Tensors, layout: _Layout, source: str) -> list[str]:
    """Missing tensors, widths that don't fit the columns or each other, values not finite."""
    expected = _names(layout)
    missing = sorted(expected - tensors.keys())
    unknown = sorted(tensors.keys() - expected)
    faults = [
        f"{source}: {count} tensors of the {layout.name} predictor {what}: {_listed(names)}"
        for names, what in ((missing, "missing"), (unknown, "unknown"))
        if (count := len(names))
    ]
    width = layout.width
    for position, name in enumerate(layout.weights):
        last = position == len(layout.weights) - 1
        if name not in tensors:
            break
        shape = tensors[name].shape
        if len(shape) != 2 or shape[1] != width or not shape[0] or (last and shape[0] != 1):
            faults.append(
                f"{source}: {name}: expected shape ({1 if last else 'n'}, {width}), got {shape}; "
                f"the {layout.name} predictor has {layout.width} inputs and one output, and each "
                "layer takes what the one before gives; choose the predictor published for the "
                "space"
            )
            break
        width = shape[0]
        bias = layout.biases[position] if position < len(layout.biases) else layout.base
        given = tensors.get(bias or "")
        if given is not None and given.shape != (width,):
            faults.append(f"{source}: {bias}: expected shape ({width},), got {given.shape}")
    for name in sorted(expected & tensors.keys()):
        wrong = int((~np.isfinite(tensors[name].astype(np.float64))).sum())
        if wrong:
            faults.append(f"{source}: {name}: {wrong} of {tensors[name].size} values aren't finite")
    return faults


def _space_faults(space: ArchitectureSpace, layout: _Layout, source: str) -> list[str]:
    """What the space's official form holds that the predictor's columns can't express."""
    faults = []
    start = f"{source}: the {layout.name} predictor doesn't fit space {space.name}: "
    for part in layout.parts:
        entries = space.official.keys.get(part.key, ())
        if len(entries) < part.count or (len(entries) > part.count and not part.first):
            faults.append(
                f"{start}expected {part.count} values of {part.key!r}, the space has {len(entries)}"
            )
            continue
        strange = {
            f"{value:g}"
            for entry in entries[: part.count]
            for value in entry.values
            if not _holds(part, value).any()
        }
        if strange:
            way_out = "; restrict the space's resolutions" if part.key == "r" else ""
            faults.append(
                f"{start}{part.key}={', '.join(sorted(strange, key=float))} has no column, known "
                f"are {', '.join(f'{value:g}' for value in part.values)}"
                + (f" up to {part.values[-1] + part.span - 1:g}" if part.span > 1 else "")
                + way_out
            )
    return faults
