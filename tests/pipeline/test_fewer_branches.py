"""Runs of residual branches with fewer of them, from the house to the students."""

import re
from dataclasses import replace

from tailorbird.measure.counts import count
from tailorbird.pipeline import ModelHouse
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeExporter
from tests.house.makers import OPTIONS, images, net

from .makers import DEVICE


def test_fewer_branches_go_all_the_way(tmp_path):
    targets = [Target("edge", DEVICE, {"latency": "0.6x"})]
    house = ModelHouse.build(
        net(depth=3),
        data=images(),
        run=tmp_path / "run",
        targets=targets,
        options=replace(OPTIONS, teacher_blocks=2, pruned=0, epochs=0.5),
        exporter=FakeExporter(),
    )
    runs = {a.name: a for a in house.house.choices if re.match(r"\d of \d$", a.variant)}
    assert {a.variant for a in runs.values()} == {"1 of 3", "0 of 2"}, "one less is a branch alone"
    assert all(a.as_is for a in runs.values())
    alone = replace(
        house, house=replace(house.house, scores={name: house.house.scores[name] for name in runs})
    )
    recipe = Recipe(epochs=2.0, batch_size=64, recalibrate_batches=1, precision="float32")
    [student] = alone.fit(targets, recipe=recipe, contenders=2)
    whole = count(house.house.teacher.module, (1, 8, 8)).macs
    assert student.met and student.result.as_is is None
    assert student.result.measured["macs"] < 0.6 * whole
    assert student.result.replaced
    assert all(re.search(r"\d of \d", part) for part in student.result.replaced)
