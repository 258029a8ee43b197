"""What a run is said to take, and the supernet flow's preflight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.graph.trace import trace
from tailorbird.pipeline.estimate import Seen, house_stages, training_s
from tailorbird.pipeline.supernet_fit import FitOptions
from tailorbird.pipeline.supernet_preflight import try_fit, try_training
from tailorbird.pipeline.supernet_run import SupernetRun
from tailorbird.pipeline.supernet_training import SupernetJob
from tailorbird.pipeline.trials import Speed, speed_of
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.targets import Target
from tailorbird.train.recipe import Recipe
from tests.fakes import FakeDevice, FakeExporter, Told
from tests.house.makers import donor, images, net
from tests.supernet.tiny import stripes, tiny_supernet

from .makers import job

SPEED = Speed(forward_s=0.001, step_s=0.003)


@dataclass(frozen=True, kw_only=True)
class Able(FakeDevice):
    """Runs int8 and float16 as well."""

    precisions: tuple[str, ...] = ("float32", "int8", "float16")


def stages(tmp_path, **changes):
    asked = job(tmp_path / "run", **changes)
    shape = asked.data.input_shape
    graphs = {name: trace(one, shape) for name, one in asked.donors.items()}
    speeds = dict.fromkeys(("teacher", *graphs), SPEED)
    seen = Seen(speeds=speeds, trace_s=1.0, block_s=0.1, file_s={"fake": 2.0})
    found = house_stages(asked, trace(asked.teacher, shape), graphs, seen)
    return {stage.name: stage for stage in found}


def test_a_house_is_estimated_by_what_its_job_asks_for(tmp_path):
    usual = stages(tmp_path)
    assert list(usual) == [
        "trace",
        "sample",
        "distil",
        "score",
        "measure",
        "search",
        "retrain",
        "export",
        "report",
    ]
    options = job(tmp_path).options
    longer = stages(tmp_path, options=replace(options, epochs=10 * options.epochs))
    assert 5 < longer["distil"].seconds / usual["distil"].seconds <= 10
    assert longer["retrain"] == usual["retrain"]
    short = stages(tmp_path, options=replace(options, epochs=1e6, minutes=2.0))
    assert short["distil"].seconds == 120
    alone = stages(tmp_path, donors={})
    assert alone["distil"].size_bytes < usual["distil"].size_bytes
    trained = stages(tmp_path, training={"teacher": Recipe(epochs=3.0), "narrow": Recipe()})
    assert trained["train"].seconds > 0 and trained["train"].size_bytes > 0
    rivals = stages(tmp_path, contenders=8)["retrain"]
    assert 1.5 < rivals.seconds / usual["retrain"].seconds < 2.2
    able = job(tmp_path, device=Able(base_ms=0.001)).targets
    several = stages(tmp_path, targets=able)
    for name, least in (("measure", 2), ("search", 1)):
        assert several[name].seconds > least * usual[name].seconds
    plain = tuple(replace(target, precisions=("float32",)) for target in able)
    assert stages(tmp_path, targets=plain)["search"] == usual["search"]
    few = stages(tmp_path, limits={"edge": {"latency": "0.6x"}})
    assert few["export"].seconds < usual["export"].seconds


def test_a_training_run_is_estimated_from_its_images():
    data, recipe = images(), Recipe(epochs=4.0, recalibrate_batches=0)
    once = training_s(recipe, SPEED, data)
    assert once == pytest.approx(4 * len(data.train) * 0.003 + 6 * len(data.validation) * 0.001)
    assert training_s(recipe, SPEED, data, beside_s=0.01) > 2 * once
    assert training_s(replace(recipe, epochs=1e9, minutes=1.0), SPEED, data) == 60


def test_speed_is_taken_from_the_quickest_pass_and_changes_nothing():
    ticks = iter(range(10_000))
    network, before = net(), {k: v.clone() for k, v in net().state_dict().items()}
    state = torch.get_rng_state()
    found = speed_of(network, images(), most=16, now=lambda: float(next(ticks)))
    assert found == Speed(forward_s=1 / 8, step_s=1 / 8, read_s=1 / 16)  # a pass is a tick
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    return tiny_supernet(tmp_path_factory.mktemp("space"), resolutions=(8,)).eval()


def test_a_supernets_training_is_tried_and_nothing_written(supernet, tmp_path):
    asked = SupernetJob(
        supernet=supernet,
        data=stripes(),
        scheme=DepS(epochs=2.0, ramp_epochs=1.0),
        recipe=SupernetRecipe(batch_size=16),
        seed=0,
        run=tmp_path / "run",
    )
    told = Told()
    try_training(asked, exporter=FakeExporter(), progress=told)
    said = "\n".join(told.lines)
    assert "data: " in said and "students are chosen on the validation images" in said
    assert "subnets have " in said and "estimate: about " in said
    assert not asked.run.exists()


class Unreached:
    """A device that answers nothing."""

    key = "silent"

    def measure(self, models):
        raise MeasurementError("it is switched off")


def test_a_fit_is_tried_with_both_ends_of_the_space(supernet, tmp_path):
    run = SupernetRun(path=tmp_path, supernet=supernet, data=stripes(), seed=0, weights="0" * 16)
    targets = [
        Target("fine", FakeDevice(), {"latency": "0.9x"}),
        Target("never", FakeDevice(), {"params": 1}),
        Target("lost", Unreached(), {"latency": "0.9x"}),
    ]
    told = Told()
    options = FitOptions(subnets=8, fine_tune=1.0)
    try_fit(run, targets, options=options, exporter=FakeExporter(), progress=told)
    said = "\n".join(told.lines)
    assert "device fake: the full network takes " in said and ", the smallest subnet takes " in said
    assert "target never: 1 params is out of reach: the smallest subnet has " in said
    assert "target fine: allowed are " in said and "target fine: 0" not in said
    assert "device silent does not answer" in said and "estimate: about " in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="none of the targets' devices answers"):
        try_fit(run, targets[2:], options=options, exporter=FakeExporter())
    with pytest.raises(ConfigError, match="none are given"):
        try_fit(run, [], options=options, exporter=FakeExporter())


def test_donors_count_whole_and_by_stages(tmp_path):
    one = stages(tmp_path)
    two = stages(tmp_path, donors={"narrow": donor(), "other": donor()})
    assert two["distil"].seconds > one["distil"].seconds
