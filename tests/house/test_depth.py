"""The teacher and its donors with fewer branches, and what can be put together from them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from tailorbird.demo import digits_net
from tailorbird.graph.blocks import block_between
from tailorbird.graph.depth import Run, parts, runs, without
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.alternative import Sample
from tailorbird.house.build import House, sample_house
from tailorbird.house.candidates import HouseCandidates
from tailorbird.house.depth import (
    MOST_PARTS,
    SIZES,
    add_depth,
    add_left_out,
    add_thinned,
    shallower,
    thinned,
)
from tailorbird.house.donors import stage_blocks
from tailorbird.house.family import HouseFamily
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector, add_identities
from tailorbird.house.store import HouseStore
from tailorbird.progress import Silent
from tailorbird.train.recipe import Recipe

from .makers import OPTIONS, images, net, seeded, small_sample, teacher

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@cache
def resnet56():
    """Three stages of nine blocks: a CIFAR ResNet-56 of few channels."""
    return trace(seeded(digits_net, width=4, depth=9).eval(), (1, 8, 8))


@cache
def house_of_depth():
    """All that there is of a ResNet-56 alone, without a donor, with made-up figures."""
    collector = Collector({})
    seen = Activations(IMAGES, limit=2**28)
    add_depth(collector, resnet56(), {}, seen=seen, options=HouseOptions())
    sample = collector.sample()
    names = [a.name for a in sample.alternatives]
    return HouseFamily(
        teacher=resnet56(),
        blocks=sample.blocks,
        alternatives=sample.alternatives,
        modules=sample.modules,
        losses=dict.fromkeys(names, 0.01),
        base={"macs": float(resnet56().macs)},
        savings={
            "macs": {
                a.name: float(sample.blocks[a.block].macs - a.macs) for a in sample.alternatives
            }
        },
    )


def kept(counts):
    """Alternatives that leave each stage with that many of its blocks, and the parts that go."""
    family, gone, names = house_of_depth(), [], []
    for run, count in zip(runs(resnet56()), counts, strict=True):
        steps, extra = len(run.steps), int(run.opened)
        left = run.without(run.spread(count - extra))
        gone += left
        block, start = run.block.key, f"{count - extra} of {steps}"
        if len(left) == 1:
            block, start = left[0].block.key, "left out"
        names += [
            a.name
            for a in family.alternatives
            if a.block == block and a.variant in (start, f"{start}, spread")
        ]
    return names, gone


@pytest.mark.parametrize("counts", [(5, 7, 8), (3, 4, 4), (5, 5, 6)])
def test_the_space_of_a_house_without_donors_holds_the_thinned_networks(counts):
    family = house_of_depth()
    names, gone = kept(counts)
    assert len(names) == 3
    genome = family.of_names(names)
    family.space.validate(genome[None])
    network = family.induce(family.names(genome))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * sum(counts) + 2
    expected = without(resnet56(), gone)
    with torch.no_grad():
        assert torch.equal(network(IMAGES), expected.module(IMAGES))
    assert family.cost(genome[None])["macs"] == expected.macs


def test_all_are_the_teacher_s_own_weights_and_taken_as_they_are():
    family = house_of_depth()
    assert all(a.as_is and not a.trainable for a in family.alternatives)
    assert {a.origin for a in family.alternatives} == {"teacher"}
    own = {tuple(p.flatten().tolist()) for p in resnet56().module.parameters()}
    for a in family.alternatives[::7]:
        held = {tuple(p.flatten().tolist()) for p in family.modules[a.name].parameters()}
        assert held <= own


def test_each_branch_is_offered_alone_and_each_number_of_a_run_twice_at_most():
    alternatives = house_of_depth().alternatives
    alone = [a for a in alternatives if a.variant == "left out"]
    assert [a.block for a in alone] == [part.block.key for part in parts(resnet56())]
    for run in runs(resnet56()):
        own = [a.variant for a in alternatives if a.block == run.block.key]
        assert len(own) == len(set(own)) <= 2 * (len(run.steps) - 1)
        sizes = {int(variant.split()[0]) for variant in own}
        assert sizes == set(range(0 if run.opened else 1, len(run.steps) - 1))
        structures = {a.structure for a in alternatives if a.block == run.block.key}
        assert len(structures) == len(sizes)  # equal numbers are timed once


def test_deep_networks_get_a_bounded_number():
    (run, *_), found = runs(resnet56()), parts(resnet56())
    deep = Run(block=run.block, steps=tuple(found[:1] for _ in range(70)), opened=True)
    offered = list(thinned(deep))
    assert len(offered) <= 2 * SIZES
    assert offered[0] == ("0 of 70", ())
    assert len(offered[-1][1]) == 68
    model = nn.Sequential(nn.Flatten(), *[nn.Linear(4, 4) for _ in range(MOST_PARTS + 10)])
    graph = trace(model.append(nn.Linear(4, 2)).eval(), (1, 2, 2))
    assert len(parts(graph)) == MOST_PARTS + 10
    collector = Collector({})
    add_left_out(collector, graph, options=HouseOptions())
    assert len(collector.alternatives) == MOST_PARTS
    ends = [a.block for a in collector.alternatives]
    assert [ends[0], ends[-1]] == [parts(graph)[i].block.key for i in (0, -1)]


def test_patterns_of_two_branches_go_together():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.wide = nn.ModuleList(
                nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(3)
            )
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = x.flatten(1)
            for mix, wide in zip(self.mix, self.wide, strict=True):
                x = x + mix(x)
                x = x + wide(x)
            return self.head(x)

    graph = trace(seeded(Pairs).eval(), (1, 2, 2))
    collector = Collector({})
    add_thinned(collector, graph, options=HouseOptions())
    assert [a.variant for a in collector.alternatives] == ["1 of 3", "2 of 3"]
    body = collector.modules[collector.alternatives[1].name]
    names = {str(n.target) for n in body.graph.nodes if n.op == "call_module"}
    assert {name for name in names if name.endswith((".0", ".1"))} >= {"mix.0", "mix.1"}
    assert {name.partition(".")[0] for name in names} == {"mix", "wide"}
    assert not any("2" in name.split(".")[1] for name in names)


def test_shallower_networks_keep_the_first_of_each_stage():
    graph = trace(seeded(digits_net, width=4, depth=4).eval(), (1, 8, 8))
    found = [thin for _, thin in shallower(graph)]
    for thin in found:
        assert {layer.name for layer in thin.layers} <= {layer.name for layer in graph.layers}
        with torch.no_grad():
            first = "stages.0.conv1.weight"
            assert torch.equal(thin.module.state_dict()[first], graph.module.state_dict()[first])
            assert thin.module(IMAGES).shape == (8, 10)
    assert list(shallower(trace(net(depth=1), (1, 8, 8)))) == []


def test_whole_networks_are_offered_from_one_step_less_to_a_quarter_of_their_depth():
    depths = []
    for _, thin in shallower(resnet56()):
        sizes = [layer.shape[-1] for layer in thin.layers if layer.kind == "add"]
        depths.append(tuple(sizes.count(size) for size in (8, 4, 2)))
    assert depths[:2] == [(8, 9, 9), (8, 8, 9)]
    assert depths[-1] == (2, 2, 3)
    for earlier, later in itertools.pairwise(depths):
        assert all(more >= less for more, less in zip(earlier, later, strict=True))
        assert max(later) - min(later) <= 2


def test_donors_stages_with_fewer_blocks_are_stitched_in_and_distilled():
    deep = {"deep": trace(seeded(digits_net, 1, width=8, depth=3).eval(), (1, 8, 8))}
    own = trace(seeded(digits_net, 0, width=8, depth=4).eval(), (1, 8, 8))
    collector, seen = Collector({}), Activations(IMAGES, limit=2**28)
    add_depth(collector, own, deep, seen=seen, options=HouseOptions())
    taken = [a for a in collector.alternatives if a.origin == "deep"]
    assert {a.variant for a in taken} == {"stitched, 1/2 of its depth"}
    assert all(a.trainable for a in taken)
    stages = {block.key: key for key, block in stage_blocks(own, stem=True).items()}
    assert [stages[a.block] for a in taken] == [(0, 64), (64, 16), (16, 4)]
    for a in taken:
        convolutions = [m for m in collector.modules[a.name].modules() if type(m) is nn.Conv2d]
        assert sum(m.kernel_size == (3, 3) for m in convolutions) == 4 + (stages[a.block][0] == 0)
    none = Collector({})
    add_depth(none, own, deep, seen=seen, options=HouseOptions(donor_blocks=0))
    assert {a.origin for a in none.alternatives} == {"teacher"}


def test_nothing_of_it_where_depth_is_off_and_nothing_twice():
    few = replace(OPTIONS, pruned=0, donor_blocks=0, merged=False)
    on, off = (
        sample_house(teacher(), {}, images(), replace(few, depth=wanted), seed=0)
        for wanted in (True, False)
    )
    assert not any(a.as_is for a in off.alternatives)
    assert on.alternatives[: len(off.alternatives)] == off.alternatives
    assert all(a.as_is for a in on.alternatives[len(off.alternatives) :])
    assert len(on.alternatives) > len(off.alternatives)
    part = parts(teacher())[0]
    for given in ({part.block.key: part.block}, {}):
        collector = Collector(given)
        add_identities(collector, teacher())
        add_left_out(collector, teacher(), options=OPTIONS)
        assert [a.block for a in collector.alternatives].count(part.block.key) == 1


def test_a_run_and_its_branches_left_out_one_by_one_are_one_network(tmp_path):
    family = house_of_depth()
    names = [a.name for a in family.alternatives]
    house = House(
        teacher=resnet56(),
        sample=Sample(
            blocks=family.blocks, alternatives=family.alternatives, modules=family.modules
        ),
        modules=family.modules,
        scores={name: {"divergence": 0.1, "accuracy_loss": 0.1} for name in names},
        store=HouseStore(tmp_path / "house"),
    )
    recipe, folder = Recipe(epochs=1), tmp_path / "retrain"
    candidates = HouseCandidates(
        house, images(), folder=folder, recipe=recipe, seed=0, progress=Silent()
    )

    def key(*found):
        return tuple(candidates.family.of_names([a.name for a in found]).tolist())

    run = runs(resnet56())[-1]
    alone = [
        next(a for a in family.alternatives if (a.block, a.variant) == (part.block.key, "left out"))
        for (part,) in run.steps
    ]
    by_variant = {a.variant: a for a in family.alternatives if a.block == run.block.key}
    content = candidates.content
    for variant, kept in [("0 of 8", set()), ("2 of 8, first", {0, 1})]:
        gone = [a for number, a in enumerate(alone) if number not in kept]
        assert content(key(by_variant[variant])) == content(key(*gone))
        assert content(key(by_variant[variant])) != content(key(*gone[1:]))
    spread, first = (content(key(by_variant[f"2 of 8, {how}"])) for how in ("spread", "first"))
    assert spread != first, "equal structures, other weights"


def test_identities_never_double_their_input():
    part = parts(teacher())[0]
    own = [name for name in part.block.nodes if name in part.branch]
    branch = block_between(teacher(), own[0], own[-1])
    inner = block_between(teacher(), own[0], own[-2])  # without its last normalisation
    collector = Collector({block.key: block for block in (branch, inner, part.block)})
    add_identities(collector, teacher())
    offered = {a.block: a.variant for a in collector.alternatives}
    assert offered == {branch.key: "zero", part.block.key: "whole"}
    assert collector.rejections == {"its input would be added to itself": 1}
    family = HouseFamily(
        teacher=teacher(),
        blocks=collector.blocks,
        alternatives=tuple(collector.alternatives),
        modules=collector.modules,
        losses={},
        base={},
        savings={},
    )
    zero, identity = (family.induce([a.name]) for a in collector.alternatives)
    with torch.no_grad():
        torch.testing.assert_close(zero(IMAGES), identity(IMAGES))
    calls = [node.name for node in zero.graph.nodes if node.op.startswith("call")]
    assert part.end not in calls
    assert not any(name.startswith("replaced_") for name in calls)


def test_a_student_with_zeros_is_trained_towards_what_is_left_and_is_cut(tmp_path):
    part = parts(teacher())[0]
    own = [name for name in part.block.nodes if name in part.branch]
    branch = block_between(teacher(), own[0], own[-1])
    collector = Collector({branch.key: branch})
    add_identities(collector, teacher())
    known = small_sample()
    other = next(
        a
        for a in known.alternatives
        if a.params and not known.blocks[a.block].overlaps(branch) and a.origin == "narrow"
    )
    sample = Sample(
        blocks={branch.key: branch, other.block: known.blocks[other.block]},
        alternatives=(replace(collector.alternatives[0], name="zero"), other),
        modules={"zero": collector.modules["a0000"], other.name: known.modules[other.name]},
    )
    candidates = HouseCandidates(
        House(
            teacher=teacher(),
            sample=sample,
            modules=sample.modules,
            scores={n: {"divergence": 0.1, "accuracy_loss": 0.1} for n in sample.modules},
            store=HouseStore(tmp_path / "house"),
        ),
        images(),
        folder=tmp_path / "retrain",
        recipe=Recipe(
            epochs=1,
            batch_size=80,
            learning_rate=0.01,
            ce_weight=0,
            kl_weight=0,
            mse_weight=1,
            keep="last",
        ),
        seed=0,
        progress=Silent(),
    )
    both = tuple(candidates.family.of_names(["zero", other.name]).tolist())
    alone = tuple(candidates.family.of_names(["zero"]).tolist())
    assert branch.output not in {n.name for n in candidates.network(alone).module.graph.nodes}
    made = candidates.train({both: "both"})[both]
    replaced = dict(made.module.named_children())
    assert [name for name in replaced if name.startswith("replaced_")] != []
    before, after = made.before.state_dict(), made.module.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)
