"""How lookup tables name layers: three styles of keys, told apart by their rows.

A row's key is made of a layer's kind and shapes, such as ``expanded_conv-input:56x56x24-
output:28x28x40-expand:3-kernel:3-stride:2-idskip:0``. The styles differ in the names of kinds, in
whether ``expand`` is a ratio or the expanded width, and in which layers have rows at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tailorbird.supernet.architecture import LayerShape


@dataclass(frozen=True)
class KeyStyle:
    """One way to name layers.

    Attributes:
        name: what messages call it.
        block: matches the keys of blocks; what a table is recognised by.
        stem: matches the key of the first convolution: groups are resolution (pixels) and width.
        key: layer and number of classes -> key; ``None`` where the style has no row for the layer.
    """

    name: str
    block: re.Pattern[str]
    stem: re.Pattern[str]
    key: Callable[[LayerShape, int], str | None]


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


def _conv(shape: LayerShape, first: str, last: str, mix: str) -> str:
    """A plain convolution: the first one has a stride, the mixing one stands behind the pool."""
    kind = first if shape.stride > 1 else mix if shape.in_size == 1 else last
    return f"{kind}-{_maps(shape)}"


def _mobilenet(shape: LayerShape, classes: int) -> str | None:
    """MobileNetV3 on phones and boards: ``expand`` is the expanded width; every layer has a row."""
    if shape.kind == "mbconv":
        hard_swish = int(shape.activation == "h_swish")
        key = _block(shape, "expanded_conv", shape.mid_channels)
        return f"{key}-se:{int(shape.se)}-hs:{hard_swish}"
    if shape.kind == "conv":
        return _conv(shape, "Conv", "Conv_1", "Conv_2")
    if shape.kind == "global_avg_pool":
        return f"AvgPool2D-{_maps(shape)}"
    if shape.kind == "linear":
        return f"Logits-input:{_map(1, shape.in_channels)}-output:{classes}"
    return f"{shape.kind}-{_maps(shape)}"


def _server(shape: LayerShape, classes: int) -> str | None:
    """MobileNetV3 on the i7: ``expand`` is the ratio; the pool has no row and counts nothing."""
    if shape.kind == "mbconv":
        return f"{_block(shape, 'MBConv', shape.expand)}-se:{int(shape.se)}"
    if shape.kind == "conv":
        return _conv(shape, "first_conv", "final_expand_layer", "feature_mix_layer")
    if shape.kind == "global_avg_pool":
        return None
    if shape.kind == "linear":
        return f"classifier-input:{shape.in_channels}-output:{classes}"
    return f"{shape.kind}-{_maps(shape)}"


def _proxyless(shape: LayerShape, classes: int) -> str | None:
    """ProxylessNAS: ``expand`` is the ratio; ``Logits`` holds the pool and the classifier.

    That row starts from the map before the pool, so it is counted where the pool stands, and the
    classifier counts nothing of its own.
    """
    if shape.kind == "mbconv":
        return _block(shape, "expanded_conv", shape.expand)
    if shape.kind == "conv":
        return _conv(shape, "Conv", "Conv_1", "Conv_1")
    if shape.kind == "global_avg_pool":
        return f"Logits-input:{_map(shape.in_size, shape.in_channels)}-output:{classes}"
    if shape.kind == "linear":
        return None
    return f"{shape.kind}-{_maps(shape)}"


_MAPS = r"-input:\d+x\d+x\d+-output:\d+x\d+x\d+"
_BLOCK = _MAPS + r"-expand:\d+-kernel:\d+-stride:\d+-idskip:[01]"
_STEM = re.compile(r"Conv-input:(\d{1,6})x\d{1,6}x\d{1,6}-output:\d{1,6}x\d{1,6}x(\d{1,6})")

STYLES = (
    KeyStyle(
        "mobilenet-v3",
        re.compile(rf"expanded_conv{_BLOCK}-se:[01]-hs:[01]"),
        _STEM,
        _mobilenet,
    ),
    KeyStyle(
        "mbconv",
        re.compile(rf"MBConv{_BLOCK}-se:[01]"),
        re.compile(r"first_conv-input:(\d{1,6})x\d+x\d+-output:\d+x\d+x(\d{1,6})"),
        _server,
    ),
    KeyStyle("proxyless", re.compile(rf"expanded_conv{_BLOCK}"), _STEM, _proxyless),
)
"""All styles. ``mobilenet-v3``: Note10 and Jetson; ``mbconv``: i7; ``proxyless``: Pixel 1."""
