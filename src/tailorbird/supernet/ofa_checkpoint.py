"""Weights of supernets as the once-for-all authors publish them.

Our names and shapes are those of the current once-for-all code. Its older files, and those of
CompOFA, call a block's body ``mobile_inverted_conv`` and spell ``conv.conv`` as ``conv`` in places;
names are compared with such repetitions taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

from torch import Tensor

from tailorbird.errors import StoreError
from tailorbird.supernet.network import Supernet
from tailorbird.supernet.store import classes_of, listed

_COUNTER = "num_batches_tracked"


def load_official(supernet: Supernet, state_dict: Mapping[str, Tensor]) -> None:
    """Copy official weights into ``supernet``, which changes **in place**; all of them or none.

    Only the counters of batches that norms keep may be missing.

    Raises:
        StoreError: listing all names that are missing, unexpected, misshaped or not finite.

    Example:
        >>> import torch
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> first, second = (
        ...     build_supernet(space, generator=torch.Generator().manual_seed(seed))
        ...     for seed in (0, 1)
        ... )
        >>> load_official(second, first.state_dict())
        >>> bool((second.first_conv.conv.weight == first.first_conv.conv.weight).all())
        True
    """
    expected = supernet.state_dict()
    ours = {_canonical(name): name for name in expected}
    given = {_canonical(name): name for name in state_dict}
    found = {ours[key]: state_dict[name] for key, name in given.items() if key in ours}
    repeated = Counter(_canonical(name) for name in state_dict)
    problems = {
        "missing": [n for n in expected if n not in found and not n.endswith(_COUNTER)],
        "unexpected": [name for key, name in given.items() if key not in ours],
        "given more than once": [given[key] for key, count in repeated.items() if count > 1],
        "misshaped": [
            f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in found.items()
            if value.shape != expected[name].shape
        ],
        "not finite": [
            name
            for name, value in found.items()
            if value.is_floating_point() and not bool(value.isfinite().all())
        ],
    }
    lines = [f"{len(names)} {word}: {listed(names)}" for word, names in problems.items() if names]
    if lines:
        told = "".join(f"\n  - {line}" for line in lines)
        raise StoreError(
            f"checkpoint does not fit a supernet of {supernet.architectures.name} with "
            f"{classes_of(supernet)} classes:{told}\ncheck that it belongs to this space"
        )
    supernet.load_state_dict({**expected, **found})


def _canonical(name: str) -> str:
    """A name in which repeated parts occur once, so that plain and elastic layers agree.

    The canonical names of a supernet's parameters are all different.
    """
    parts = name.replace("mobile_inverted_conv", "conv").split(".")
    return ".".join(part for part, _ in groupby(parts) if part != "module")
