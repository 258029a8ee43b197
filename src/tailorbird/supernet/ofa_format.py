"""Specialised networks as the once-for-all authors publish them, read back into a space.

A configuration lists concrete layers. Reading walks the slots of each space along that list: a slot
takes the next layer or is absent, every layer has to equal one of the slot's shapes, and the
shapes taken decide the genes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tailorbird.errors import SpaceError
from tailorbird.supernet.architecture import (
    SPACES,
    ArchitectureSpace,
    LayerShape,
    load_space,
    make_divisible,
)
from tailorbird.supernet.official import some
from tailorbird.supernet.space_file import is_resolution

MOST_BYTES = 10_000_000
MOST_LAYERS = 1_000
T = TypeVar("T")
Layers = list[tuple[str, LayerShape]]
_PARTS = ("first_conv", "input_stem", "blocks", "final_expand_layer", "feature_mix_layer")
_ACTIVATIONS = ("relu", "relu6", "h_swish")
_UNSAID = {"global_avg_pool", "max_pool"}
"""Kinds that a configuration doesn't list."""


def read_specialized(path: Path) -> dict[str, object]:
    """The space and the architecture of an official specialised network.

    Args:
        path: a JSON file ``{"net": ..., "run": {"image_size": ...}}``, or a folder with
            ``net.config`` and ``run.config`` as they are downloaded.

    Returns:
        ``{"space": name, "architecture": official form}``; of several spaces that hold the
        network, the widest. The image size may lie outside the space's own resolutions: load it
        with ``load_space(name, resolutions=[...])`` then.

    Raises:
        SpaceError: for a file that is no such configuration, or a network that lies outside every
            space, naming what differs from the closest one.
    """
    net, image_size = _contents(path)
    faults: list[str] = []
    layers = _listed(net, faults)
    if not is_resolution(image_size):
        faults.append(
            f"run.image_size: expected a whole number of pixels from 32 to 4096, got {image_size!r}"
        )
    if faults:
        raise SpaceError(f"{path}: no specialised network can be read: {some(faults)}")
    rejected = []
    for space in sorted(_spaces(image_size), key=lambda s: s.space.size, reverse=True):
        genome, differences = _matched(space, layers)
        if not differences:
            return {"space": space.name, "architecture": space.architectures(genome)[0]}
        rejected.append((space.name, differences))
    closest, least = min(rejected, key=lambda found: len(found[1]))
    raise SpaceError(
        f"{path}: the network lies outside every space ({', '.join(SPACES)}); "
        f"from the closest, {closest}, it differs in: {some(least)}"
    )


def _spaces(image_size: int) -> Iterator[ArchitectureSpace]:
    """All spaces but those that can't take images of this size."""
    for name in SPACES:
        with suppress(SpaceError):
            yield load_space(name, resolutions=[image_size])


def _contents(path: Path) -> tuple[Mapping[str, Any], Any]:
    """The network's description and the image size."""
    net: Any
    run: Any
    if path.is_dir():
        net, run = _json(path / "net.config"), _json(path / "run.config")
    else:
        both = _json(path)
        net, run = both.get("net"), both.get("run")
    wrong = [
        f"expected an object {key!r}, got {value!r:.80}"
        for key, value in (("net", net), ("run", run))
        if not isinstance(value, Mapping)
    ]
    if wrong:
        raise SpaceError(f"{path}: {'; '.join(wrong)}")
    return net, run.get("image_size")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SpaceError(f"{path}: expected a configuration of at most {MOST_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpaceError(f"{path}: expected a JSON file, got: {error}") from error
    if not isinstance(found, Mapping):
        raise SpaceError(f"{path}: expected a JSON object, got {found!r:.80}")
    return found


def _listed(net: Mapping[str, Any], faults: list[str]) -> Layers:
    """Every layer of the description in the order in which they run."""
    unknown = net.keys() - {"name", "bn", "classifier", *_PARTS}
    faults += [f"net.{key}: unknown part" for key in sorted(unknown)]
    described: list[tuple[str, object]] = []
    for part in (*_PARTS, "classifier"):
        value = net.get(part)
        if isinstance(value, list):
            described += [(f"{part}.{i}", item) for i, item in enumerate(value)]
        elif value is not None:
            described.append((part, value))
    if not described or len(described) > MOST_LAYERS:
        faults.append(f"net: expected 1 to {MOST_LAYERS} layers, got {len(described)}")
        return []
    read = [(name, _layer(_Reader(name, item, faults))) for name, item in described]
    return [(name, shape) for name, shape in read if shape is not None]


class _Reader:
    """Typed look-ups in one described layer; what is wrong is added to ``faults``."""

    def __init__(self, name: str, described: object, faults: list[str]) -> None:
        self.name = name
        self.faults = faults
        self.given: Mapping[str, Any] = described if isinstance(described, Mapping) else {}
        if not self.given:
            faults.append(f"{name}: expected a described layer, got {described!r:.80}")

    def inner(self, key: str) -> _Reader:
        return _Reader(f"{self.name}.{key}", self.given.get(key), self.faults)

    def has(self, key: str) -> bool:
        return self.given.get(key) is not None

    def whole(self, key: str) -> int:
        value = self.given.get(key)
        if type(value) is int and 0 < value < 1 << 20:
            return value
        return self._fault(key, "a positive whole number", 1)

    def ratio(self, key: str) -> float:
        value = self.given.get(key)
        if isinstance(value, int | float) and value is not True and 0 < value < 1 << 10:
            return value
        return self._fault(key, "a positive number", 1)

    def flag(self, key: str) -> bool:
        value = self.given.get(key)
        return value if isinstance(value, bool) else self._fault(key, "true or false", False)

    def activation(self) -> str:
        value = self.given.get("act_func")
        if isinstance(value, str) and value in _ACTIVATIONS:
            return value
        return self._fault("act_func", f"one of {', '.join(_ACTIVATIONS)}", "none")

    def expect(self, key: str, *values: object) -> None:
        """A key that may be missing, but says nothing other than ``values`` where it's there."""
        if self.has(key) and not any(self.given[key] == value for value in values):
            self._fault(key, f"one of {values}", None)

    def _fault(self, key: str, expected: str, instead: T) -> T:
        self.faults.append(
            f"{self.name}.{key}: expected {expected}, got {self.given.get(key)!r:.80}"
        )
        return instead


def _layer(reader: _Reader) -> LayerShape | None:
    """The shape of one described layer, sizes left at 0."""
    name = reader.given.get("name")
    if name in ("MobileInvertedResidualBlock", "ResidualBlock"):
        body = reader.inner("mobile_inverted_conv" if "conv" not in reader.given else "conv")
        shape = _plain_layer(body) if body.given else None
        return None if shape is None else replace(shape, residual=reader.has("shortcut"))
    return _plain_layer(reader)


def _plain_layer(reader: _Reader) -> LayerShape | None:
    """A layer without a shortcut around it."""
    name = reader.given.get("name")
    kinds = {
        "ConvLayer": _conv,
        "MBInvertedConvLayer": _mbconv,
        "MBConvLayer": _mbconv,
        "ResNetBottleneckBlock": _bottleneck,
        "LinearLayer": _linear,
    }
    if not isinstance(name, str) or name not in kinds:
        if reader.given:
            reader.faults.append(f"{reader.name}: unknown layer {name!r:.80}")
        return None
    return kinds[name](reader)


def _shape(reader: _Reader, kind: str, unit: str = "channels", **given: Any) -> LayerShape:  # noqa: ANN401  # attributes
    """A layer's shape; what isn't ``given`` is as a plain layer has it."""
    inside, outside = reader.whole(f"in_{unit}"), reader.whole(f"out_{unit}")
    return LayerShape(kind, inside, outside, 0, 0, **{"mid_channels": inside, **given})


def _conv(reader: _Reader) -> LayerShape:
    reader.expect("dilation", 1)
    reader.expect("groups", 1)
    reader.expect("bias", False)
    reader.expect("use_se", False)
    return _shape(
        reader,
        "conv",
        kernel=reader.whole("kernel_size"),
        stride=reader.whole("stride"),
        activation=reader.activation(),
        norm=reader.flag("use_bn"),
    )


def _linear(reader: _Reader) -> LayerShape:
    reader.expect("bias", True)
    reader.expect("use_bn", False)
    return _shape(reader, "linear", "features")


def _mbconv(reader: _Reader) -> LayerShape:
    return _block(reader, "mbconv", "in_channels", se=reader.flag("use_se"))


def _bottleneck(reader: _Reader) -> LayerShape:
    reader.expect("groups", 1)
    reader.expect("downsample_mode", "avgpool_conv")
    return _block(reader, "bottleneck", "out_channels", residual=True)


def _block(reader: _Reader, kind: str, widened: str, **more: Any) -> LayerShape:  # noqa: ANN401
    expand = reader.ratio("expand_ratio")
    mid = make_divisible(round(reader.whole(widened) * expand))
    if expand == 1:
        mid = reader.whole("in_channels")
    return _shape(
        reader,
        kind,
        kernel=reader.whole("kernel_size"),
        stride=reader.whole("stride"),
        expand=expand,
        mid_channels=reader.whole("mid_channels") if reader.has("mid_channels") else mid,
        activation=reader.activation(),
        norm=True,
        **more,
    )


_COMPARED = [f.name for f in fields(LayerShape) if f.name not in ("in_size", "out_size")]
_PLACE = ("kind", "in_channels", "out_channels", "stride")
"""What tells the layers of neighbouring slots apart."""


def _matched(space: ArchitectureSpace, layers: Layers) -> tuple[Any, list[str]]:
    """The genome (1, genes) whose layers these are, and what differs where there is none."""
    left = list(layers)
    allowed = [set(range(int(size))) for size in space.space.sizes]
    differences = []
    for slot in space.slots:
        shapes = slot.shapes()
        if shapes[0].kind in _UNSAID:
            continue
        name, layer = left[0] if left else ("", None)
        here = layer is not None and any(_alike(s, layer, _PLACE) for s in shapes)
        if layer is None or (not here and len(shapes) < len(slot.variants)):
            taken = [index for index, shape in slot.variants.items() if shape is None]
            if not taken:
                differences.append(f"{slot.name} is missing")
        else:
            left.pop(0)
            taken = [
                index
                for index, shape in slot.variants.items()
                if shape is not None and _alike(shape, layer, _COMPARED)
            ]
            if not taken:
                differences.append(f"{name} {_difference(shapes, layer)}")
        for column, gene in enumerate(slot.genes if taken else ()):
            allowed[gene] &= {index[column] for index in taken}
    differences += [f"{name} is one layer too many" for name, _ in left]
    impossible = [c.name for c, a in zip(space.space.choices, allowed, strict=True) if not a]
    if impossible and not differences:
        differences.append(f"its layers ask for different values of {', '.join(impossible)}")
    genome = np.array([[min(indices, default=0) for indices in allowed]], dtype=np.int64)
    genome = space.space.canonical(genome)
    if not differences:
        differences += _verified(space, genome, layers)
    return genome, differences


def _verified(space: ArchitectureSpace, genome: Any, layers: Layers) -> list[str]:  # noqa: ANN401
    """The genome's own layers once more against the given ones: genes were found one by one."""
    own = [shape for _, shape in space.layers(genome[0]) if shape.kind not in _UNSAID]
    if len(own) == len(layers) and all(
        _alike(shape, layer, _COMPARED) for shape, (_, layer) in zip(own, layers, strict=True)
    ):
        return []
    return ["the combination of its layers"]


def _alike(left: LayerShape, right: LayerShape, names: Sequence[str]) -> bool:
    return all(getattr(left, name) == getattr(right, name) for name in names)


def _difference(shapes: Sequence[LayerShape], layer: LayerShape) -> str:
    told = []
    for name in _COMPARED:
        offered = sorted({getattr(shape, name) for shape in shapes})
        if getattr(layer, name) not in offered:
            told.append(f"{name}={getattr(layer, name)} (expected {_either(offered)})")
    return ", ".join(told) or "combines values that no shape has together"


def _either(values: Sequence[object]) -> str:
    return " or ".join(str(value) for value in values)
