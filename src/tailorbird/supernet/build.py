"""Subnets on their own, with norm statistics of their own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from tailorbird.errors import SpaceError
from tailorbird.space import Genomes
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import Supernet


def build_all(
    supernet: Supernet, genomes: Genomes, batches: Iterable[Tensor]
) -> list[nn.Sequential]:
    """Subnets (n, genes) on their own, recalibrated in one walk over ``batches``, in eval mode.

    Raises:
        SpaceError: when a genome lies outside the space, or none is given.
        DataError: when there is no batch.

    Example:
        >>> import torch
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, classes=10, generator=torch.Generator().manual_seed(0))
        >>> [small] = build_all(net, net.smallest()[None], [torch.rand(2, 3, 32, 32)])
        >>> small(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if not len(genomes):
        raise SpaceError("subnets: expected at least one genome to build, got none")
    return [
        extract(supernet, genome, statistics=statistics).eval()
        for genome, statistics in zip(genomes, recalibrate(supernet, genomes, batches), strict=True)
    ]
