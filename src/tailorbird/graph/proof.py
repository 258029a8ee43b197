"""A traced network has to give what the network gives: values and gradients, at any batch size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from tailorbird.errors import GraphError

_WAY_OUT = "mark the module that does so as a leaf: trace(..., leaves=['its.path'])"


def prove(network: nn.Module, traced: fx.GraphModule, home: nn.Module, images: Tensor) -> None:
    """Compare a network with its trace on some images, both in eval mode.

    Where the network gives a weight no gradient at all, as under ``torch.no_grad``, the trace may
    give one.

    Args:
        network: as it was before tracing.
        traced: its trace.
        home: the copy of the network that the trace's weights are of.
        images: (n, C, H, W).

    Raises:
        GraphError: saying what differs, by how much, and the way out.
    """
    names = {id(weight): name for name, weight in home.named_parameters()}
    own = dict(network.named_parameters())
    weights = {
        name: (own[name], weight)
        for weight in traced.parameters()
        if (name := names.get(id(weight), "")) in own
    }
    what = type(network).__name__
    expected, wanted = _run(network, {name: pair[0] for name, pair in weights.items()}, images)
    try:
        found, given = _run(traced, {name: pair[1] for name, pair in weights.items()}, images)
    except Exception as error:  # whatever a wrong program does
        raise GraphError(
            f"the traced network does not run on {len(images)} images, {what} does ({error}): "
            f"{_WAY_OUT}"
        ) from error
    if expected.shape != found.shape:
        raise GraphError(
            f"the traced network gives {tuple(found.shape)} for {len(images)} images, {what} gives "
            f"{tuple(expected.shape)}: {_WAY_OUT}"
        )
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        apart = (found - expected).abs().max().item()
        raise GraphError(
            f"the traced network differs from {what} by up to {apart:.3g} on {len(images)} images; "
            f"what writes into views of tensors can't be looked into: {_WAY_OUT}; what keeps state "
            "from call to call has to be written without"
        )
    for name, gradient in wanted.items():
        _compare(name, gradient, given.get(name), type(network).__name__)


def _compare(name: str, wanted: Tensor, given: Tensor | None, network: str) -> None:
    found = torch.zeros_like(wanted) if given is None else given
    size = wanted.abs().max().item() if wanted.numel() else 0.0
    if not torch.allclose(found, wanted, rtol=1e-2, atol=1e-3 * size + 1e-7, equal_nan=True):
        raise GraphError(
            f"the gradient of {name or 'the images'} differs between {network} and its trace: "
            f"{wanted.abs().sum().item():.3g} in sum there, {found.abs().sum().item():.3g} here; "
            f"what has a backward of its own can't be looked into: {_WAY_OUT}",
            module=name.rpartition(".")[0],
        )


def _run(
    network: nn.Module, weights: Mapping[str, Tensor], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The outputs and the gradients that there are, of weights by name and of the images as ``""``.

    A network whose own backward fails, or that was made without one, has no gradients.
    """
    image = images.clone().requires_grad_(images.is_floating_point())
    leaves = {"": image, **weights}
    asked = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    with torch.enable_grad(), torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        try:
            output: Tensor = network(image * 1)  # a network may write into its input
        except RuntimeError:
            with torch.no_grad():  # some writes are refused where gradients are wanted
                output = network(images.clone())
        if not output.requires_grad:
            return output.detach(), {}
        scale = torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape).to(output)
        try:
            total = (output * scale).sum()
            found = torch.autograd.grad(total, [*asked.values()], allow_unused=True)
        except RuntimeError:
            return output.detach(), {}
    gradients = {name: g for name, g in zip(asked, found, strict=True) if g is not None}
    return output.detach(), gradients
