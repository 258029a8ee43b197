"""All kinds of layers by their names."""

from __future__ import annotations

from collections.abc import Mapping

from tailorbird.errors import SpaceError
from tailorbird.supernet.kinds.bottleneck import BOTTLENECK
from tailorbird.supernet.kinds.kind import Kind
from tailorbird.supernet.kinds.mbconv import MBCONV
from tailorbird.supernet.kinds.plain import CONV, GLOBAL_AVG_POOL, LINEAR, MAX_POOL
from tailorbird.supernet.kinds.transformer import PATCH_EMBED, TOKEN_MEAN, TRANSFORMER_BLOCK

Kinds = Mapping[str, Kind]

KINDS: Kinds = {
    kind.name: kind
    for kind in (
        CONV,
        MBCONV,
        BOTTLENECK,
        MAX_POOL,
        GLOBAL_AVG_POOL,
        PATCH_EMBED,
        TRANSFORMER_BLOCK,
        TOKEN_MEAN,
        LINEAR,
    )
}
"""The package's kinds; a new one is a row here."""


def kind_called(name: str, kinds: Kinds = KINDS) -> Kind:
    """The kind of layer of this name.

    Raises:
        SpaceError: for a name that isn't among ``kinds``, listing those that are.

    Example:
        >>> kind_called("mbconv").role
        'block'
        >>> kind_called("lineal")
        Traceback (most recent call last):
        ...
        tailorbird.errors.SpaceError: no kind of layer is called 'lineal'; expected one of conv,
        mbconv, bottleneck, max_pool, global_avg_pool, patch_embed, transformer_block, token_mean,
        linear
    """
    if name not in kinds:
        raise SpaceError(f"no kind of layer is called {name!r}; expected one of {', '.join(kinds)}")
    return kinds[name]
