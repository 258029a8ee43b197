"""The contract of kinds of layers, a stranger's kind, and kinds that nobody knows."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.errors import SpaceError
from tailorbird.estimate.features import architecture_features
from tailorbird.estimate.latency_table import compile_table, read_table
from tailorbird.estimate.learned_latency import LayerFeatures
from tailorbird.measure.counts import count
from tailorbird.supernet.architecture import LayerShape, define_space, load_space
from tailorbird.supernet.counts import macs, params
from tailorbird.supernet.elastic import Elastic, Tie
from tailorbird.supernet.extract import extract
from tailorbird.supernet.kinds.attributes import ACTIVATION, EXPAND, KERNEL, OUT_CHANNELS
from tailorbird.supernet.kinds.kind import Kind
from tailorbird.supernet.kinds.table import KINDS, kind_called
from tailorbird.supernet.layers import distinct_layers, single_layers
from tailorbird.supernet.network import Supernet, build_supernet
from tailorbird.supernet.schemes import channels
from tailorbird.supernet.shortcuts import Residual

# --- a stranger's kind ---------------------------------------------------------------------


class Scale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, factors):
        super().__init__()
        self.factors = nn.Parameter(factors)

    def forward(self, images):
        return images * self.factors[:, None, None]


class ElasticScale(Elastic):
    """`Scale` of the leading middle channels."""

    def __init__(self, width):
        super().__init__()
        self.factors = nn.Parameter(torch.empty(width))
        self._active = width

    def activate(self, shape):
        self._active = shape.mid_channels

    def forward(self, images):
        return images * self.factors[: self._active, None, None]

    def extract(self, shape):
        return Scale(self.factors[: shape.mid_channels].detach().clone())

    def ties(self):
        return [Tie("mid_channels", self.factors, 0)]

    def initialise(self, generator, std):
        self.factors.uniform_(0.5, 1.5, generator=generator)


def _pair(make):
    wide = make.unit(
        *("in_channels", "mid_channels"),
        kernels=make.kernels,
        stride=make.shape.stride,
        activation=make.shape.activation,
    )
    width = make.most("mid_channels")
    scale = ElasticScale(width) if make.elastic else Scale(torch.empty(width))
    body = nn.Sequential(wide, scale, make.unit("mid_channels", "out_channels"))
    return Residual(body) if make.shape.residual else body


PAIR = Kind(
    name="scaled_pair",
    attributes=(OUT_CHANNELS, KERNEL, EXPAND, ACTIVATION),
    needed=("out_channels", "activation"),
    build=_pair,
    macs=lambda shape: (
        shape.out_size**2
        * shape.mid_channels
        * (shape.in_channels * shape.kernel**2 + shape.out_channels)
    ),
    params=lambda shape: (
        shape.mid_channels * (shape.in_channels * shape.kernel**2 + 3)
        + (shape.mid_channels + 2) * shape.out_channels
    ),
    defaults={"norm": True},
    derived=lambda given: {
        "residual": given["in_channels"] == given["out_channels"] and given["stride"] == 1
    },
    role="block",
)
ALL = {**KINDS, PAIR.name: PAIR}

# --- one example of each -------------------------------------------------------------------

STEM = {"name": "stem", "kind": "conv", "out_channels": 8, "kernel": 3, "stride": 2}
WIDE = {"out_channels": {"gene": "w", "values": [8, 16]}}
CONV = [{**STEM, "activation": "relu"}]
PATCHES = [{"name": "patches", "kind": "patch_embed", **WIDE, "stride": 8}]
POOL = [{"name": "pool", "kind": "global_avg_pool"}]
MEAN = [{"name": "mean", "kind": "token_mean"}]
STAGE = {"stage": 1, "name": "blocks", "first": 0, "blocks": 2}
RATIO = {"expand": {"each": "e", "values": [1.5, 3]}, "depth": {"gene": "d1", "values": [1, 2]}}
KERNELS = {"kernel": {"each": "k", "values": [3, 5]}}
ATTENTION = {"heads": {"each": "h", "values": [1, 2]}, "head_channels": 4, "activation": "gelu"}

LAYERS = {
    "conv": [*CONV, {"name": "mix", "kind": "conv", "kernel": 3, "residual": True}, *POOL],
    "mbconv": [*CONV, {**STAGE, **RATIO, **KERNELS, "se": True, "activation": "h_swish"}, *POOL],
    "bottleneck": [*CONV, {**STAGE, **RATIO, "stride": 2, "activation": "relu"}, *POOL],
    "max_pool": [*CONV, {"name": "max", "kind": "max_pool", "kernel": 3, "stride": 2}, *POOL],
    "global_avg_pool": [*CONV, *POOL],
    "patch_embed": [*PATCHES, *MEAN],
    "transformer_block": [*PATCHES, {**STAGE, **RATIO, **ATTENTION}, *MEAN],
    "token_mean": [*PATCHES, *MEAN],
    "linear": [*CONV, *POOL],
    "scaled_pair": [*CONV, {**STAGE, **RATIO, **KERNELS, "activation": "relu"}, *POOL],
}
"""Kind -> layers of a small space, which the classifier follows."""


def definition(name):
    layers = copy.deepcopy(LAYERS[name])
    layers.append({"name": "classifier", "kind": "linear", "out_channels": 3})
    for layer in layers:
        if "stage" in layer:
            layer["kind"] = name
            if name != "transformer_block":
                layer["out_channels"] = 8
    if name == "conv":
        layers[1]["out_channels"] = 8
    told = json.dumps(layers)
    genes, official = {}, {}
    for gene, values in (("d1", [1, 2]), ("w", [8, 16])):
        if f'"{gene}"' in told:
            genes[gene], official[gene[0]] = values, [gene]
    for prefix, key in (("k", "kernel"), ("e", "expand"), ("h", "heads")):
        official |= {prefix: key} if f'"each": "{prefix}"' in told else {}
    return {"resolutions": [32, 40], "genes": genes, "official": official, "layers": layers}


@pytest.fixture(params=ALL)
def kind(request):
    return ALL[request.param]


@pytest.fixture
def space(kind):
    return define_space("mine", definition(kind.name), kinds=ALL)


@pytest.fixture
def net(space):
    """A supernet in which every number differs from every other."""
    generator = torch.Generator().manual_seed(0)
    net = build_supernet(space, generator=generator).eval()
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return net


def pictures(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def shape(name, **more):
    plain = {"kernel": 1, "stride": 1, "mid_channels": 8, "expand": 1, "se": False}
    plain |= {"activation": "none", "residual": False, "norm": True, **more}
    return LayerShape(name, 8, 8, 4, 4, **plain)


# --- the contract --------------------------------------------------------------------------


def test_each_kind_of_the_package_has_an_example():
    assert set(LAYERS) == set(ALL)
    assert all(name == kind.name for name, kind in ALL.items())


def test_attributes_are_fields_of_shapes_and_are_checked(kind):
    known = {field.name for field in fields(LayerShape)}
    assert {attribute.name for attribute in kind.attributes} <= known
    assert {name for name in kind.needed if name != "stride"} <= {a.name for a in kind.attributes}
    sound = definition(kind.name)
    [place, *_] = [n for n, layer in enumerate(sound["layers"]) if layer["kind"] == kind.name]

    def fault(**changed):
        data = copy.deepcopy(sound)
        data["layers"][place] |= changed
        for name in [key for key, value in changed.items() if value is None]:
            del data["layers"][place][name]
        with pytest.raises(SpaceError) as caught:
            define_space("mine", data, kinds=ALL)
        return str(caught.value)

    for attribute in kind.attributes:
        assert not attribute.fits([])
        told = f"layers[{place}].{attribute.name}: expected {attribute.wanted}, got []"
        assert told in fault(**{attribute.name: []})
    for name in kind.needed:
        assert f"layers[{place}].{name}: missing" in fault(**{name: None})
    assert f"layers[{place}].colour: unknown; expected " in fault(colour="red")


def test_what_is_built_has_the_size_and_the_costs_that_are_declared(kind, space, net):
    shapes = [shape for shape in distinct_layers(space) if shape.kind == kind.name]
    assert shapes
    for layer in single_layers(net, shapes):
        shape, tokens = layer.shape, kind.tokens and kind.role != "pool"
        with torch.no_grad():
            made = layer.module(torch.rand(1, *layer.input_shape)).shape[1:]
        if tokens:
            assert made == (shape.out_size**2, shape.out_channels)
        else:
            assert made.numel() == shape.out_channels * shape.out_size**2
            assert made[0] == shape.out_channels
        counted = count(layer.module, layer.input_shape)
        assert (kind.macs(shape), kind.params(shape)) == (counted.macs, counted.params)
        assert 0 <= kind.depthwise_macs(shape) <= kind.macs(shape)
        assert kind.moved(shape) > 0


def test_a_subnet_is_the_active_supernet_and_costs_what_its_layers_do(space, net):
    genomes = space.space.sample(6, np.random.default_rng(0))
    for genome in [net.smallest(), net.largest(), *genomes]:
        size = net.resolution(genome)
        net.activate(genome)
        alone = extract(net, genome)
        with torch.no_grad():
            assert torch.equal(alone(pictures(size)), net(pictures(size)))
        counted = count(alone, (3, size, size))
        assert macs(space).sum(genome[None]) == counted.macs
        assert params(space).sum(genome[None]) == counted.params


def test_tied_channels_can_be_permuted(net):
    generator = torch.Generator().manual_seed(2)
    before = net(pictures()).detach()
    orders = []
    for inner in channels.inner_channels(net):
        [size] = {tensor.shape[dimension] for tensor, dimension in inner.held}
        assert size == inner.widths(None)[-1] == inner.reader.shape[1]
        groups = torch.randperm(size // inner.group, generator=generator)
        orders.append((groups[:, None] * inner.group + torch.arange(inner.group)).flatten())
    channels.reorder_channels(net, orders)
    assert torch.allclose(net(pictures()), before, atol=1e-5)


def test_every_elastic_width_inside_blocks_is_tied(kind, net):
    """Middle channels of each block, and all else that is elastic in it."""
    found = {(inner.slot.name, inner.width) for inner in channels.inner_channels(net)}
    for slot, _ in net.slots():
        if slot.shapes()[0].kind != kind.name:
            continue
        for width in ("mid_channels", "attention"):
            elastic = len({getattr(shape, width) for shape in slot.shapes()}) > 1
            assert not elastic or kind.role != "block" or (slot.name, width) in found


def test_kinds_are_read_without_torch():
    code = "import sys, tailorbird.supernet.architecture; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- a new kind, from a file to a network --------------------------------------------------


def test_a_new_kind_works_from_end_to_end(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(definition(PAIR.name)))
    space = load_space(path, kinds=ALL)
    assert space.with_resolutions([64]).kind_of(shape(PAIR.name)) is PAIR
    net = build_supernet(space, classes=5, generator=torch.Generator().manual_seed(0)).eval()
    assert all(value.isfinite().all() for value in net.state_dict().values())
    channels.zero_residual_gains(net)
    subnet = extract(net, net.smallest())
    assert subnet(pictures()).shape == (2, 5)
    assert len([part for part in subnet.modules() if isinstance(part, Scale)]) == 1
    genomes = np.stack([net.smallest(), net.largest()])
    features = architecture_features(space)
    column = features.columns["figures"].index("blocks")
    assert features(genomes)["figures"][:, column].tolist() == [1, 2]
    assert np.isfinite(LayerFeatures(space)(genomes)).all()


# --- kinds that nobody knows ---------------------------------------------------------------

KNOWN = "conv, mbconv, bottleneck, max_pool, global_avg_pool, patch_embed"


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    told = f"no kind of layer is called 'lineal'; expected one of {KNOWN}"
    with pytest.raises(SpaceError, match=told):
        kind_called("lineal")


def test_an_unknown_kind_is_refused_wherever_a_space_is_used(tmp_path):
    with pytest.raises(SpaceError, match=rf"layers\[1\]\.kind: expected one of {KNOWN}"):
        define_space("mine", definition(PAIR.name))
    space = define_space("mine", definition(PAIR.name), kinds=ALL)
    unheard = replace(space, kinds=KINDS)
    for use in (macs, params, architecture_features, LayerFeatures):
        with pytest.raises(SpaceError, match=f"called 'scaled_pair'; expected one of {KNOWN}"):
            use(unheard)
    with pytest.raises(SpaceError, match=f"for kind 'scaled_pair'; expected one of {KNOWN}"):
        Supernet(unheard)
    table = tmp_path / "table.yaml"
    block = "expanded_conv-input:8x8x8-output:8x8x8-expand:3-kernel:3-stride:1-idskip:1"
    table.write_text(f"{block}: {{mean: 1}}\nConv-input:32x32x3-output:16x16x8: {{mean: 1}}\n")
    with pytest.raises(SpaceError, match=r"lacks .* rows that mine needs: .*scaled_pair-input"):
        compile_table(read_table(table), space.with_resolutions([32]))


def test_a_piece_without_a_rule_for_its_weights_is_refused():
    class Forgetful(ElasticScale):
        initialise = Elastic.initialise

    def same_wide(given):
        return {"mid_channels": given["in_channels"]}

    odd = replace(PAIR, build=lambda make: Forgetful(make.most("mid_channels")), derived=same_wide)
    space = define_space("mine", definition(PAIR.name), kinds={**ALL, PAIR.name: odd})
    with pytest.raises(SpaceError, match="weights: no rule for how those of Forgetful start"):
        build_supernet(space, generator=torch.Generator().manual_seed(0))
