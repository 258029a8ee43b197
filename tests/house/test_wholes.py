"""Whole networks as alternatives: as they are, not distilled, scored with their own heads."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from tailorbird.demo import narrow_net
from tailorbird.graph.blocks import whole_network
from tailorbird.graph.surgery import induce
from tailorbird.graph.trace import trace
from tailorbird.house.activations import Activations
from tailorbird.house.depth import shallower
from tailorbird.house.donors import add_donor_stages, largest_block, stage_blocks
from tailorbird.house.options import HouseOptions
from tailorbird.house.sample import Collector
from tailorbird.house.score import score_accuracy
from tailorbird.house.store import HouseStore
from tailorbird.house.structures import donor_labels, structures_of, whole_labels
from tailorbird.house.wholes import add_wholes, same_outputs
from tailorbird.task import CLASSIFICATION

from .makers import donor, donors, images, net, seeded, teacher

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SEEN = Activations(IMAGES, limit=2**30)
OPTIONS = HouseOptions(donor_blocks=1, pruned=1, width_multiple=2)


@cache
def offered():
    """What wholes are offered of a donor that answers to the teacher's classes; read only."""
    collector = Collector({})
    add_wholes(collector, teacher(), donors(), seen=SEEN, options=OPTIONS)
    return collector.sample()


@cache
def foreign():
    """A donor that answers to seven classes."""
    network = seeded(narrow_net, 2, width=4, depth=1)
    linears = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    parent, _, name = linears[-1].rpartition(".")
    head = network.get_submodule(linears[-1])
    setattr(network.get_submodule(parent), name, nn.Linear(head.in_features, 7))
    return trace(network.eval(), (1, 8, 8))


def test_a_donor_that_answers_to_the_classes_is_the_whole_network_as_it_is():
    sample, block = offered(), whole_network(teacher())
    assert sample.blocks == {block.key: block}
    [alternative] = [a for a in sample.alternatives if a.variant == "whole"]
    assert alternative.origin == "narrow" and alternative.as_is and not alternative.trainable
    student = induce(teacher(), {block: sample.modules[alternative.name]})
    with torch.no_grad():
        assert torch.equal(student(IMAGES), donors()["narrow"].module(IMAGES))


def test_the_teacher_and_such_donors_are_offered_narrower_and_narrower_none_of_them_to_be_trained():
    sample = offered()
    for origin in ("teacher", "narrow"):
        sizes = [
            a.macs for a in sample.alternatives if (a.origin, a.variant[:3]) == (origin, "mag")
        ]
        assert len(sizes) > 1 and sizes == sorted(set(sizes), reverse=True)
    assert not any(a.trainable for a in sample.alternatives)
    structures = [a.structure for a in sample.alternatives]
    assert len(set(structures)) == len(structures)


def test_networks_are_offered_with_a_share_of_their_parts():
    deep = trace(net(depth=4), (1, 8, 8))
    collector = Collector({})
    add_wholes(collector, deep, {"deep": deep}, seen=SEEN, options=replace(OPTIONS, pruned=0))
    found = [(a.origin, a.variant, a.macs) for a in collector.alternatives if a.as_is]
    thin = [(variant, one.macs) for variant, one in shallower(deep)]
    assert found == [("teacher", *one) for one in thin] + [("deep", *one) for one in thin]
    assert len(thin) == 7


@pytest.mark.parametrize(
    ("changes", "origins"),
    [
        ({"stem": False}, set()),
        ({"donor_blocks": 0}, {"teacher"}),
        ({"pruned": 0, "depth": False}, {"narrow"}),
    ],
)
def test_options_that_leave_them_out(changes, origins):
    collector = Collector({})
    options = replace(OPTIONS, **changes)
    add_wholes(collector, teacher(), donors(), seen=SEEN, options=options)
    assert {a.origin for a in collector.alternatives} == origins


def test_a_donor_of_other_classes_is_offered_once_before_the_teachers_head_and_distilled():
    other, collector = {"other": foreign()}, Collector({})
    assert not same_outputs(teacher(), foreign())
    add_wholes(collector, teacher(), other, seen=SEEN, options=OPTIONS)
    [alternative] = [a for a in collector.alternatives if a.origin == "other"]
    assert alternative.trainable and alternative.variant == "stitched"
    assert alternative.block == largest_block(teacher(), stem=True).key
    assert alternative.source == largest_block(foreign(), stem=True).key


def test_no_run_of_stages_is_a_whole_donor():
    collector = Collector({})
    add_donor_stages(collector, teacher(), donors(), seen=SEEN, options=OPTIONS)
    runs = {block.key for block in stage_blocks(teacher(), stem=True).values()}
    found = {a.block for a in collector.alternatives}
    assert found and found <= runs - {largest_block(teacher(), stem=True).key}


def test_they_are_scored_by_what_they_answer(tmp_path):
    sample = offered()
    split = images().validation
    found = score_accuracy(
        teacher(), sample, sample.modules, split, store=HouseStore(tmp_path), precision="float32"
    )
    [name] = [a.name for a in sample.alternatives if a.variant == "whole"]
    batch, labels = next(iter(split.batches(len(split))))
    with torch.no_grad():
        expected, answers = teacher().module(batch), donors()["narrow"].module(batch)
    divergence = float(CLASSIFICATION.distil(answers, expected))
    assert found[name]["divergence"] == pytest.approx(divergence, rel=1e-3)
    right = [(one.argmax(1) == labels).double().mean() for one in (expected, answers)]
    assert found[name]["accuracy_loss"] == pytest.approx(float(right[0] - right[1]))


def test_networks_of_one_structure_are_timed_once_and_the_teacher_under_its_own_name():
    twins = {"one": donors()["narrow"], "two": trace(donor(seed=9), (1, 8, 8))}
    twins["self"] = trace(net(seed=5), (1, 8, 8))  # the teacher's structure, other weights
    collector = Collector({}, rule=lambda macs, block_macs: None)
    options = replace(OPTIONS, pruned=0, depth=False)
    add_wholes(collector, teacher(), twins, seen=SEEN, options=options)
    sample = collector.sample()
    labels = donor_labels(teacher(), sample.alternatives)
    assert labels == {"one": "net:a0000", "self": "teacher", "two": "net:a0000"}
    found = structures_of(teacher(), sample, sample.modules)
    assert set(found.networks) == {"teacher", "net:a0000"}
    assert found.own == whole_labels(teacher(), sample.alternatives)
    assert set(found.replaced.values()) == {"teacher"}
    saved = found.saved({"teacher": 3.0, "net:a0000": 1.0})
    assert saved == {"a0000": 2.0, "a0001": 0.0, "a0002": 2.0}
