"""Taking one network out of a supernet: plain layers with their own weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from tailorbird.errors import StoreError
from tailorbird.space import Genome
from tailorbird.supernet.architecture import LayerShape
from tailorbird.supernet.elastic import Elastic
from tailorbird.supernet.network import Supernet


def extract(
    supernet: Supernet,
    genome: Genome,
    *,
    statistics: Mapping[str, Tensor] | None = None,
) -> nn.Sequential:
    """The network of ``genome`` on its own; equal bit for bit to the active supernet.

    The supernet, its active genome included, stays as it is. Layers keep the supernet's names
    (``blocks.7`` stays that where ``blocks.6`` is absent), and its mode and device.

    Args:
        supernet: what to take it from.
        genome: (genes,).
        statistics: running statistics of this network's norms, from
            :func:`tailorbird.supernet.calibrate.recalibrate`; the supernet's own when ``None``.

    Raises:
        SpaceError: when the genome lies outside the space.
        StoreError: when the statistics are of another network.

    Example:
        >>> import torch
        >>> from tailorbird.supernet.architecture import load_space
        >>> from tailorbird.supernet.network import build_supernet
        >>> space = load_space("compofa-mbv3-w1.0", resolutions=[32])
        >>> net = build_supernet(space, generator=torch.Generator().manual_seed(0)).eval()
        >>> net.activate(net.smallest())
        >>> images = torch.rand(1, 3, 32, 32)
        >>> bool((extract(net, net.smallest())(images) == net(images)).all())
        True
    """
    supernet.architectures.space.validate(genome[None])
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    folders: dict[str, OrderedDict[str, nn.Module]] = {}
    for number, (slot, module) in enumerate(supernet.slots()):
        shape = supernet.shape(number, genome)
        if shape is None:
            continue
        folder, _, name = slot.name.rpartition(".")
        if folder and folder not in folders:
            folders[folder] = OrderedDict()
            layers[folder] = nn.Sequential()
        (folders[folder] if folder else layers)[name] = _plain(module, shape)
    for folder, members in folders.items():
        layers[folder] = nn.Sequential(members)
    network = nn.Sequential(layers).train(supernet.training)
    if statistics is not None:
        _install(network, statistics)
    return network


def _plain(module: nn.Module, shape: LayerShape) -> nn.Module:
    """A copy of a module in which plain layers of ``shape`` stand for the elastic pieces."""
    if isinstance(module, Elastic):
        return module.extract(shape)
    if not any(isinstance(part, Elastic) for part in module.modules()):
        return copy.deepcopy(module)
    # Only what is kept is copied: a shallow copy shares the tables of parameters and children.
    twin = copy.copy(module)
    twin._modules = {name: _plain(child, shape) for name, child in module.named_children()}
    return twin


def _install(network: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    own = dict(network.named_buffers())
    wrong = sorted(own.keys() ^ statistics.keys()) + sorted(
        f"{name} {tuple(statistics[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & statistics.keys()
        if own[name].shape != statistics[name].shape
    )
    if wrong:
        raise StoreError(
            f"statistics: of another network, {len(wrong)} names or shapes differ: "
            f"{', '.join(wrong[:10])}; recalibrate this one"
        )
    for name, value in own.items():
        value.copy_(statistics[name])
