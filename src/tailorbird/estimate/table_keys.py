"""How lookup tables name layers: three styles of keys, told apart by their rows.

A row's key is made of a layer's kind and shapes, such as ``expanded_conv-input:56x56x24-
output:28x28x40-expand:3-kernel:3-stride:2-idskip:0``. The styles differ in the names of kinds, in
whether ``expand`` is a ratio or the expanded width, and in which layers have rows at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tailorbird.supernet.architecture import LayerShape

Row = Callable[[LayerShape, int], str | None]
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class KeyStyle:
    """One way to name layers.

    Attributes:
        name: what messages call it.
        block: matches the keys of blocks; what a table is recognised by.
        stem: matches the key of the first convolution: groups are resolution (pixels) and width.
        rows: kind of layer -> its key, given the number of classes; ``None`` where a layer of the
            kind counts nothing of its own.
    """

    name: str
    block: re.Pattern[str]
    stem: re.Pattern[str]
    rows: Rows

    def key(self, shape: LayerShape, classes: int) -> str | None:
        """Key of a layer's row; ``None`` where it counts nothing.

        A layer of another kind than the style's gets a key that no table has, so that it is
        reported as missing and never taken for free.
        """
        row = self.rows.get(shape.kind)
        return f"{shape.kind}-{_maps(shape)}" if row is None else row(shape, classes)


def styles_of(keys: Iterable[str]) -> tuple[KeyStyle, ...]:
    """The styles that at least one of the keys is written in; one, in a well-formed table.

    Example:
        >>> [style.name for style in styles_of(["expanded_conv-input:7x7x8-output:7x7x8-expand:3"
        ...     "-kernel:3-stride:1-idskip:1"])]
        ['proxyless']
    """
    keys = tuple(keys)
    return tuple(style for style in STYLES if any(map(style.block.fullmatch, keys)))


def _map(size: int, channels: int) -> str:
    return f"{size}x{size}x{channels}"


def _maps(shape: LayerShape) -> str:
    return (
        f"input:{_map(shape.in_size, shape.in_channels)}-"
        f"output:{_map(shape.out_size, shape.out_channels)}"
    )


def _block(shape: LayerShape, kind: str, expand: float) -> str:
    return (
        f"{kind}-{_maps(shape)}-expand:{expand:g}-kernel:{shape.kernel}-stride:{shape.stride}-"
        f"idskip:{int(shape.residual)}"
    )


def _conv(first: str, last: str, mix: str) -> Row:
    """A plain convolution: the first one has a stride, the mixing one stands behind the pool."""

    def row(shape: LayerShape, _classes: int) -> str:
        kind = first if shape.stride > 1 else mix if shape.in_size == 1 else last
        return f"{kind}-{_maps(shape)}"

    return row


def _mobilenet_block(shape: LayerShape, _classes: int) -> str:
    hard_swish = int(shape.activation == "h_swish")
    key = _block(shape, "expanded_conv", shape.mid_channels)
    return f"{key}-se:{int(shape.se)}-hs:{hard_swish}"


def _nothing(_shape: LayerShape, _classes: int) -> None:
    return None


_MOBILENET: Rows = {
    "mbconv": _mobilenet_block,
    "conv": _conv("Conv", "Conv_1", "Conv_2"),
    "global_avg_pool": lambda shape, _: f"AvgPool2D-{_maps(shape)}",
    "linear": lambda shape, classes: f"Logits-input:{_map(1, shape.in_channels)}-output:{classes}",
}
"""MobileNetV3 on phones and boards: ``expand`` is the expanded width; every layer has a row."""

_SERVER: Rows = {
    "mbconv": lambda shape, _: f"{_block(shape, 'MBConv', shape.expand)}-se:{int(shape.se)}",
    "conv": _conv("first_conv", "final_expand_layer", "feature_mix_layer"),
    "global_avg_pool": _nothing,
    "linear": lambda shape, classes: f"classifier-input:{shape.in_channels}-output:{classes}",
}
"""MobileNetV3 on the i7: ``expand`` is the ratio; the pool has no row and counts nothing."""

_PROXYLESS: Rows = {
    "mbconv": lambda shape, _: _block(shape, "expanded_conv", shape.expand),
    "conv": _conv("Conv", "Conv_1", "Conv_1"),
    "global_avg_pool": lambda shape, classes: (
        f"Logits-input:{_map(shape.in_size, shape.in_channels)}-output:{classes}"
    ),
    "linear": _nothing,
}
"""ProxylessNAS: ``expand`` is the ratio; ``Logits`` holds the pool and the classifier.

That row starts from the map before the pool, so it is counted where the pool stands, and the
classifier counts nothing of its own.
"""

_MAPS = r"-input:\d+x\d+x\d+-output:\d+x\d+x\d+"
_BLOCK = _MAPS + r"-expand:\d+-kernel:\d+-stride:\d+-idskip:[01]"
_STEM = re.compile(r"Conv-input:(\d{1,6})x\d{1,6}x\d{1,6}-output:\d{1,6}x\d{1,6}x(\d{1,6})")

STYLES = (
    KeyStyle(
        "mobilenet-v3",
        re.compile(rf"expanded_conv{_BLOCK}-se:[01]-hs:[01]"),
        _STEM,
        _MOBILENET,
    ),
    KeyStyle(
        "mbconv",
        re.compile(rf"MBConv{_BLOCK}-se:[01]"),
        re.compile(r"first_conv-input:(\d{1,6})x\d+x\d+-output:\d+x\d+x(\d{1,6})"),
        _SERVER,
    ),
    KeyStyle("proxyless", re.compile(rf"expanded_conv{_BLOCK}"), _STEM, _PROXYLESS),
)
"""All styles. ``mobilenet-v3``: Note10 and Jetson; ``mbconv``: i7; ``proxyless``: Pixel 1."""
