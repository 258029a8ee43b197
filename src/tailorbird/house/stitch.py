"""Stitching a donor's block into the teacher: linear maps between the two networks' features.

Two networks trained apart hold much the same features, but in other channels. So a donor's block
does little in the teacher as it is, even where the shapes are equal. Between a teacher's tensor and
the donor's tensor at the corresponding place the best linear map per position,

    A = argmin sum_p || x_p A - z_p ||^2 + ridge ||A||^2

is one small least-squares problem over the positions p of a few calibration images; as a 1x1
convolution (a dense layer for tokens) in front of the block, and one behind it fitted the same way,
it hands the donor's block inputs that it knows and the teacher outputs that it knows. Any number of
channels goes, nothing is cut. The two maps cost their MACs; measuring decides whether they pay.

Stitching layers as a means to compare networks: Bansal et al. 2021 ("Revisiting model stitching");
initialised by least squares: Csiszarik et al. 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from tailorbird.errors import GraphError

POSITIONS = 20_000
"""Positions that a map is fitted on, at most."""

RIDGE = 1e-4
"""Weight of the penalty, as a share of the inputs' mean square."""


def linear_map(source: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map per position that turns ``source`` into ``wanted`` best.

    Args:
        source: (n, C, H, W) or tokens (n, T, C).
        wanted: the same positions, D channels.

    Returns:
        Weight (D, C) and bias (D,).

    Raises:
        GraphError: when the two don't have the same positions.

    Example:
        >>> x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        >>> weight, bias = linear_map(x, 2 * x + 1)
        >>> torch.allclose(weight, 2 * torch.eye(3), atol=1e-2), bias.round(decimals=1).tolist()
        (True, [1.0, 1.0, 1.0])
    """
    if source.dim() != wanted.dim() or _places(source) != _places(wanted):
        raise GraphError(
            "stitching: other positions: "
            f"expected {tuple(wanted.shape)} up to channels, got {tuple(source.shape)}"
        )
    rows, targets = _rows(source), _rows(wanted)
    step = max(1, len(rows) // POSITIONS)
    rows, targets = rows[::step], targets[::step]
    mean, middle = rows.mean(0), targets.mean(0)
    rows, targets = rows - mean, targets - middle
    gram = rows.T @ rows
    penalty = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
    gram = gram + penalty * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, rows.T @ targets).T
    return weight.float(), (middle - weight @ mean).float()


def stitch(
    body: fx.GraphModule,
    entry: tuple[Tensor, Tensor] | None,
    leave: tuple[Tensor, Tensor],
    *,
    spatial: tuple[bool, bool],
) -> fx.GraphModule:
    """``body`` between two linear maps, as one module with the placeholder ``x``.

    Args:
        entry: (weight, bias) of the map in front, or ``None`` for no map.
        leave: the same of the map behind.
        spatial: whether the tensors there are (n, C, H, W); else channels come last.
    """
    home = nn.Module()
    if entry is not None:
        home.add_module("adapter_in", _layer(*entry, spatial=spatial[0]))
    home.add_module("body", body)
    home.add_module("adapter_out", _layer(*leave, spatial=spatial[1]))
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name, _ in home.named_children():
        value = graph.call_module(name, (value,))
    graph.output(value)
    return fx.GraphModule(home, graph)


def _layer(weight: Tensor, bias: Tensor, *, spatial: bool) -> nn.Module:
    outputs, inputs = weight.shape
    layer: nn.Module  # made without the usual initialisation, which would draw random numbers
    if spatial:
        layer = skip_init(nn.Conv2d, inputs, outputs, 1)  # type: ignore[no-untyped-call]
        weight = weight[:, :, None, None]
    else:
        layer = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _places(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], *x.shape[2:]) if x.dim() == 4 else tuple(x.shape[:-1])


def _rows(x: Tensor) -> Tensor:
    """(positions, channels) in double precision."""
    last = x.movedim(1, -1) if x.dim() == 4 else x
    return last.reshape(-1, last.shape[-1]).double()
