"""A supernet as a family: the seam between its subnets and the searches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tailorbird.errors import SpaceError
from tailorbird.family import Floats
from tailorbird.space import Genomes, Space
from tailorbird.supernet.calibrate import recalibrate
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.extract import extract
from tailorbird.supernet.network import Supernet

Predictor = Callable[[Genomes], Floats]
"""Genomes (n, genes) -> figures (n,)."""


class SupernetFamily:
    """A trained supernet with predictors; implements :class:`tailorbird.family.Family`.

    Args:
        supernet: whose subnets are the members; left as it is.
        predictor: predicted accuracy, higher is better.
        costs: metric -> predictor of it, beside ``macs`` and ``params``, which are counted; such
            as ``latency_ms`` or, with several devices, ``latency_ms@DEVICE``.
        calibration: opens a walk over training images, batches (m, 3, h, w) on the supernet's
            device, that a member's norms are re-estimated from.

    Example:
        >>> import torch
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, classes=10, generator=torch.Generator().manual_seed(0))
        >>> family = SupernetFamily(net, predictor=lambda g: 0.5 + 0.01 * g.sum(axis=1), costs={},
        ...                         calibration=lambda: [torch.rand(2, 3, 32, 32)])
        >>> family.cost(net.smallest()[None])["params"]
        array([2158730.])
        >>> family.build(net.smallest())(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        predictor: Predictor,
        costs: Mapping[str, Predictor],
        calibration: Callable[[], Iterable[Tensor]],
    ) -> None:
        self.supernet = supernet
        self.predictor = predictor
        self.calibration = calibration
        space = supernet.architectures
        self.costs: dict[str, Predictor] = {
            "macs": macs(space).sum,
            "params": params(space).sum,
            **costs,
        }

    @property
    def space(self) -> Space:
        """The genomes that name the subnets."""
        return self.supernet.architectures.space

    def cost(self, genomes: Genomes) -> dict[str, Floats]:
        """Predicted figures of ``genomes`` (n, genes): metric -> (n,)."""
        return {metric: predict(genomes) for metric, predict in self.costs.items()}

    def quality(self, genomes: Genomes) -> Floats:
        """Predicted accuracy of ``genomes`` (n, genes): (n,)."""
        return self.predictor(genomes)

    def build(self, genome: npt.NDArray[np.int64]) -> nn.Sequential:
        """The subnet (genes,) on its own, recalibrated, in eval mode."""
        return build_all(self.supernet, genome[None], self.calibration())[0]


def build_all(
    supernet: Supernet, genomes: Genomes, batches: Iterable[Tensor]
) -> list[nn.Sequential]:
    """Subnets (n, genes) on their own, recalibrated in one walk over ``batches``, in eval mode.

    Raises:
        SpaceError: when a genome lies outside the space, or none is given.
        DataError: when there is no batch.
    """
    if not len(genomes):
        raise SpaceError("subnets: expected at least one genome to build, got none")
    return [
        extract(supernet, genome, statistics=statistics).eval()
        for genome, statistics in zip(genomes, recalibrate(supernet, genomes, batches), strict=True)
    ]
