from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.errors import GraphError
from tailorbird.graph.trace import trace
from tailorbird.house.build import sample_house
from tailorbird.house.merge import mergeable
from tailorbird.house.sample import Collector, teacher_blocks
from tailorbird.progress import Silent

from .makers import OPTIONS, donors, images, net, same, seeded, small_sample, teacher


def test_same_seed_same_house_whatever_the_global_generator_holds():
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = sample_house(teacher(), donors(), images(), OPTIONS, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.record() == small_sample().record()
    assert all(same(again.modules[n], m) for n, m in small_sample().modules.items())


class Told(Silent):
    """Tasks' names -> steps in all, steps made."""

    def __init__(self):
        self.tasks = {}

    @contextmanager
    def task(self, name, total):
        self.tasks[name] = [total, 0]
        yield SimpleNamespace(advance=partial(self._advance, name))

    def _advance(self, name, steps=1, note=""):
        self.tasks[name][1] += steps


def test_every_part_of_sampling_says_how_far_it_is():
    told = Told()
    sample = sample_house(teacher(), donors(), images(), OPTIONS, seed=0, progress=told)
    kinds = Counter(
        (a.origin == "teacher", a.variant.partition(" ")[0]) for a in sample.alternatives
    )
    merges = len(mergeable(teacher()))
    assert told.tasks == {
        "sample blocks": [6, 6],
        "sample the teacher's own": [6, kinds[True, "whole"]],
        "sample donors' blocks": [3, 3],
        "sample pruned variants": [4, 4],
        "sample stages of donors": [1, 1],
        "sample whole networks": [2, 2],
        "sample left out parts": [1, 1],
        "sample fewer parts": [0, 0],
        "sample thinner stages": [1, 1],
        "sample merged convolutions": [merges, merges],
    }


def test_another_seed_gives_another_house():
    other = sample_house(teacher(), donors(), images(), OPTIONS, seed=1)
    assert other.record() != small_sample().record()


def test_every_alternative_fits_its_block_and_is_smaller():
    sample = small_sample()
    assert {a.origin for a in sample.alternatives} >= {"teacher", "identity", "narrow"}
    for alternative in sample.alternatives:
        block = sample.blocks[alternative.block]
        output = sample.modules[alternative.name](torch.zeros(2, *block.in_shape))
        assert tuple(output.shape) == (2, *block.out_shape), alternative
        assert alternative.macs < block.macs


def test_identity_stands_exactly_where_the_shape_is_kept():
    sample = small_sample()
    drawn = teacher_blocks(teacher(), OPTIONS, np.random.default_rng(0))
    given = {a.block for a in sample.alternatives if a.origin == "identity"}
    assert given == {k for k, b in drawn.items() if b.in_shape == b.out_shape}
    assert 0 < len(given) < len(drawn)
    none = sample_house(teacher(), donors(), images(), replace(OPTIONS, identity=False), seed=0)
    assert "identity" not in {a.origin for a in none.alternatives}


def test_stem_blocks_only_when_asked():
    image = teacher().layers[0].name
    many = replace(OPTIONS, teacher_blocks=100, recall=1.0)
    with_stem = teacher_blocks(teacher(), many, np.random.default_rng(0))
    without = teacher_blocks(teacher(), replace(many, stem=False), np.random.default_rng(0))
    assert any(block.input == image for block in with_stem.values())
    assert without
    assert not any(block.input == image for block in without.values())


def test_what_is_turned_away_is_counted_by_its_reason():
    sample = small_sample()
    block = next(iter(sample.blocks.values()))
    collector = Collector(sample.blocks)
    whole = next(a for a in sample.alternatives if a.origin == "identity")
    offered = {"origin": "teacher", "source": "s", "variant": "whole"}
    big = nn.Sequential(*[nn.Conv2d(block.in_shape[0], block.in_shape[0], 9) for _ in range(2)])
    fx = torch.fx.symbolic_trace
    assert not collector.offer(block, fx(big), **offered)
    wide = nn.Conv2d(block.in_shape[0], 512, 9, padding=4)
    assert not collector.offer(block, fx(wide), **offered)
    own = sample.blocks[whole.block]
    assert collector.offer(own, sample.modules[whole.name], **offered)
    assert not collector.known(block, "teacher", "s")
    assert collector.known(block, "teacher", "s")
    assert collector.rejections == Counter(
        {
            "does not run": 1,
            "not smaller than the teacher's block": 1,
            "drawn before": 1,
        }
    )
    assert [a.name for a in collector.alternatives] == ["a0000"]


def test_an_empty_house_says_why_and_what_to_raise():
    narrowing = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    graph = trace(seeded(lambda: narrowing), (1, 8, 8))
    options = replace(OPTIONS, pruned=0, donor_blocks=0)
    with pytest.raises(GraphError) as caught:
        sample_house(graph, {}, images(), options, seed=0)
    text = str(caught.value)
    assert "the house stays empty: no alternative fits any of" in text
    assert "teacher has no smaller block of these shapes (" in text
    assert "raise house.donor_blocks, house.pruned or house.recall" in text


def test_a_teacher_without_blocks_is_refused():
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8))
    with pytest.raises(GraphError, match="the teacher holds no block that could be replaced"):
        sample_house(graph, {}, images(), OPTIONS, seed=0)


def test_sampling_leaves_teacher_and_donors_alone():
    model = net()
    graph = trace(model, (1, 8, 8))
    sample_house(graph, donors(), images(), OPTIONS, seed=3)
    assert same(model, net())
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.state_dict().values(), graph.module.state_dict().values(), strict=True
        )
    )


def test_designs_are_drawn_when_asked_for_and_pruned_like_others():
    options = replace(OPTIONS, designed=4, pruned=12)
    sample = sample_house(teacher(), donors(), images(), options, seed=0)
    designed = [a for a in sample.alternatives if a.origin == "designed"]
    assert sum(a.variant == "whole" for a in designed) == 4
    assert "designed" not in {a.origin for a in small_sample().alternatives}


def test_merged_blocks_are_offered_unless_turned_off():
    merged = [a for a in small_sample().alternatives if a.variant.startswith("merged")]
    assert merged
    assert all(a.origin == "teacher" and a.trainable for a in merged)
    none = sample_house(teacher(), donors(), images(), replace(OPTIONS, merged=False), seed=0)
    rest = [a for a in small_sample().alternatives if a not in merged]
    # Merging draws nothing: what else there is stays the same.
    assert [(a.block, a.origin, a.source, a.variant) for a in none.alternatives] == [
        (a.block, a.origin, a.source, a.variant) for a in rest
    ]
