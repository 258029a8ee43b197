"""Designs: each row of the table fits, learns, can be stored and exported."""

from itertools import product

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tailorbird.errors import GraphError
from tailorbird.export.onnx import export_onnx
from tailorbird.export.verify import verify
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.serial import from_spec, to_spec
from tailorbird.graph.trace import trace
from tailorbird.house.designs import DESIGNS, Place, add_designed, build_design, place_of
from tailorbird.house.sample import Collector

from .makers import same, seeded, teacher

CONVOLUTIONS = [design for design in DESIGNS if design.layout == "images"]
TOKENS = [design for design in DESIGNS if design.layout == "tokens"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def place(design, stride=1):
    if design.layout == "tokens":
        out = (9, 24) if stride == 1 else (9, 16)
        return Place(layout="tokens", in_shape=(9, 24), out_shape=out, activation=nn.GELU, head=6)
    out = (8, 8, 8) if stride == 1 else (16, 4, 4)
    return Place(layout="images", in_shape=(8, 8, 8), out_shape=out)


def learns(module, where):
    """Losses while it learns to mix the channels of its input."""
    x = torch.randn(16, *where.in_shape, generator=generator(1))
    images = where.layout == "images"
    ends = [shape[0] if images else shape[-1] for shape in (where.out_shape, where.in_shape)]
    mix = torch.randn(*ends, generator=generator(2)) / ends[1] ** 0.5
    wanted = torch.einsum("oc,nc...->no..." if images else "oc,n...c->n...o", mix, x)
    if images:
        wanted = F.interpolate(wanted, where.out_shape[1:])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    module.train()
    losses = []
    for _ in range(40):
        loss = (module(x) - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_each_design_fits_learns_and_is_stored(design, stride):
    where = place(design, stride)
    module = build_design(design, where, generator=generator())
    x = torch.randn(2, *where.in_shape, generator=generator(3))
    with torch.no_grad():
        output = module(x)
    assert output.shape == (2, *where.out_shape)
    if stride == 1:  # begins as the identity, and has a way to leave it
        torch.testing.assert_close(output, x)
    assert [n.name for n in module.graph.nodes if n.op == "placeholder"] == ["x"]
    again = from_spec(to_spec(module))
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again.eval()(x), output)
    losses = learns(module, where)
    assert losses[-1] < 0.9 * losses[0]
    assert trace(module.eval(), where.in_shape).told == ("read by torch.fx",)


def test_names_are_unique_and_the_table_has_what_lana_lists():
    assert len({design.name for design in DESIGNS}) == len(DESIGNS)
    assert {d.kind for d in CONVOLUTIONS} == {"narrow", "separable", "inverted", "bottleneck"}
    inverted = {(d.kernel, d.expand, d.squeeze) for d in CONVOLUTIONS if d.kind == "inverted"}
    assert inverted == set(product((3, 5), (3, 6), (False, True)))
    plain, squeezed = (
        {(d.kind, d.kernel, d.expand) for d in CONVOLUTIONS if d.squeeze is with_it}
        for with_it in (False, True)
    )
    assert plain == squeezed
    assert all(d.expand < 1 for d in CONVOLUTIONS if d.kind in ("narrow", "bottleneck"))
    assert any(0 < d.heads < 1 for d in TOKENS)
    assert any(0 < d.mlp < 4 and d.heads == 1 for d in TOKENS)
    assert any(not d.heads for d in TOKENS)
    assert any(not d.mlp for d in TOKENS)
    assert all(d.heads or d.mlp for d in TOKENS)


def test_weights_come_from_the_generator_and_leave_global_numbers_alone():
    where = place(CONVOLUTIONS[0], 2)
    before = torch.random.get_rng_state()
    first, again, other = (
        build_design(CONVOLUTIONS[0], where, generator=generator(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize(
    ("before", "after"), [((9, 9), (5, 5)), ((8, 7), (8, 7)), ((32, 32), (1, 2)), ((7, 7), (5, 5))]
)
def test_any_change_to_smaller_sizes_is_bridged(before, after):
    where = Place(layout="images", in_shape=(3, *before), out_shape=(10, *after))
    for design in CONVOLUTIONS[:11]:
        module = build_design(design, where, generator=generator())
        assert module(torch.zeros(2, 3, *before)).shape == (2, 10, *after)


def test_what_no_design_bridges_is_refused():
    where = Place(layout="images", in_shape=(3, 4, 4), out_shape=(3, 8, 8))
    with pytest.raises(GraphError, match="no stride leads to the size: from 4 to 8, kernel 3"):
        build_design(CONVOLUTIONS[0], where, generator=generator())
    where = Place(layout="tokens", in_shape=(16, 8), out_shape=(4, 8))
    with pytest.raises(GraphError, match="no transformer changes the number of tokens"):
        build_design(TOKENS[0], where, generator=generator())


@pytest.mark.slow
def test_designs_are_exported_as_they_are(tmp_path):
    for i, design in enumerate([CONVOLUTIONS[-1], TOKENS[0]]):
        where = place(design, 2)
        module = build_design(design, where, generator=generator()).eval()
        path = export_onnx(module, where.in_shape, tmp_path / f"{i}.onnx")
        x = torch.randn(3, *where.in_shape, generator=generator(1))
        assert verify(module, path, x).passed


def block_of(graph, least, **wanted):
    """The first block of so many layers whose ends are of these kinds."""
    return next(
        b
        for b in enumerate_blocks(graph)
        if len(b.nodes) >= least
        and graph.layer(b.input).kind == wanted["begins"]
        and graph.layer(b.output).kind == wanted["ends"]
    )


def made(name, shape, **arguments):
    return trace(
        seeded(timm.create_model, model_name=name, num_classes=5, **arguments).eval(), shape
    )


def test_norm_and_activation_are_the_teachers():
    graph = teacher()
    block = block_of(graph, 3, begins="activation", ends="activation")
    found = place_of(graph, block)
    assert (found.layout, found.norm, found.activation) == ("images", nn.BatchNorm2d, nn.ReLU)
    assert found.ends_in_activation
    module = build_design(CONVOLUTIONS[0], found, generator=generator())
    assert module(torch.randn(2, *block.in_shape)).min().item() >= 0
    graph = made("efficientnet_lite0", (3, 32, 32))
    block = block_of(graph, 4, begins="norm", ends="norm")
    found = place_of(graph, block)
    assert (found.norm, found.activation) == (nn.BatchNorm2d, nn.ReLU6)


def test_designs_for_tokens_know_the_teachers_heads_and_layouts():
    graph = made(
        "vit_tiny_patch16_224",
        (1, 16, 16),
        img_size=16,
        patch_size=4,
        in_chans=1,
        depth=2,
        num_heads=2,
        embed_dim=48,
    )
    block = block_of(graph, 8, begins="add", ends="add")
    found = place_of(graph, block)
    assert (found.layout, found.head, found.activation) == ("tokens", 24, nn.GELU)
    half = next(d for d in TOKENS if d.heads == 0.5)
    module = build_design(half, found, generator=generator())
    assert {m.out_features for m in module.modules() if isinstance(m, nn.Linear)} >= {3 * 24}
    graph = made(
        "swin_tiny_patch4_window7_224",
        (3, 32, 32),
        img_size=32,
        window_size=4,
        embed_dim=32,
        depths=(1, 1),
        num_heads=(2, 4),
    )
    maps = [b for b in enumerate_blocks(graph) if b.in_shape == b.out_shape == (8, 8, 32)]
    found = place_of(graph, maps[0])
    assert found.layout == "tokens"
    module = build_design(TOKENS[0], found, generator=generator())
    assert module(torch.zeros(2, 8, 8, 32)).shape == (2, 8, 8, 32)
    stem = next(
        b for b in enumerate_blocks(graph) if (b.in_shape, b.out_shape) == ((3, 32, 32), (8, 8, 32))
    )
    with pytest.raises(GraphError, match="begins and ends in other layouts"):
        place_of(graph, stem)


def test_as_many_as_wanted_are_drawn_by_the_seed():
    blocks = {b.key: b for b in enumerate_blocks(teacher())}

    def drawn(seed):
        collector = Collector(blocks)
        rng = np.random.default_rng(seed)
        add_designed(collector, teacher(), wanted=5, multiple=8, rng=rng)
        return collector

    first, again = drawn(0), drawn(0)
    assert len(first.alternatives) == 5
    assert first.alternatives == again.alternatives
    assert all(same(first.modules[n], again.modules[n]) for n in first.modules)
    assert first.alternatives != drawn(1).alternatives
    assert {a.origin for a in first.alternatives} == {"designed"}
    assert {a.source for a in first.alternatives} <= {d.name for d in DESIGNS}
