"""Seeds that follow from one seed: what is random at a step depends on nothing that came before."""

from __future__ import annotations

import numpy as np
import torch


def derive(seed: int, purpose: int, *numbers: int) -> int:
    """A seed of its own for each purpose and step, the same on every machine.

    Args:
        seed: the run's, 0 or more.
        purpose: what the derived seed is for.
        numbers: of the epoch or step; and whatever else is to draw on its own.

    Example:
        >>> derive(0, 1, 2) == derive(0, 1, 2), derive(0, 1, 2) == derive(0, 2, 1)
        (True, False)
    """
    mixed = np.random.SeedSequence([seed, purpose, *numbers]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU for what is drawn by one derived seed."""
    return torch.Generator().manual_seed(seed)
