"""A supernet held from Python: trained, opened, evaluated and fitted on a tiny space."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tailorbird as tb
from tailorbird.cli.supernet import opened
from tailorbird.config.run_data import stored_images
from tailorbird.data.images import Normalisation
from tailorbird.errors import ConfigError, DataError, StoreError
from tailorbird.pipeline.supernet_run import evaluate_subnets
from tests.fakes import FakeDevice, FakeExporter
from tests.supernet.tiny import stripes, tiny_space

SCHEME = tb.DepS(epochs=4, ramp_epochs=1)
RECIPE = tb.SupernetRecipe(batch_size=12)
LIMITED = [tb.Target("box", FakeDevice(), {"latency": "0.9x"})]
SIZES = {"subnets": 10, "candidates": 2, "rounds": 1, "checks": 3}


def space_in(folder):
    """The file of a tiny space."""
    tiny_space(folder, resolutions=(32,))
    return folder / "tiny-mbconv.json"


def trained(run, data=None, **given):
    run.parent.mkdir(exist_ok=True)
    made = {"scheme": SCHEME, "recipe": RECIPE, "exporter": FakeExporter(), "seed": 3, **given}
    return tb.Supernet.train(space_in(run.parent), data=data or stripes(), run=run, **made)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The run folder of a supernet that was trained from Python."""
    return trained(tmp_path_factory.mktemp("trained") / "run").path


def grey():
    """Stripes in one channel."""
    data, norm = stripes(), Normalisation((0.4,), (0.2,))
    train, validation = (
        replace(one, images=one.images[:, :1], normalisation=norm)
        for one in (data.train, data.validation)
    )
    return replace(
        data, train=train, validation=validation, normalisation=norm, input_shape=(1, 12, 12)
    )


def test_what_is_trained_is_opened_and_evaluated(path):
    again = tb.Supernet.open(path, data=stripes())
    assert again.seed == 3  # the run's own
    found = again.evaluate(subnets=2)
    assert len(found.subnets) == 4 and (path / "evaluation.json").is_file()
    assert trained(path).evaluate(subnets=2) == found  # nothing to train, nothing to evaluate


def test_students_are_those_of_targets_and_a_strategy_is_used(path):
    asked = []

    class Asked(tb.AllAtOnce):
        def search(self, family, limits, **given):
            asked.append(len(limits))
            return super().search(family, limits, **given)

    supernet = tb.Supernet.open(path, data=stripes(), exporter=FakeExporter())
    (student,) = supernet.fit(LIMITED, strategy=Asked(), evaluate=larger_is_better, **SIZES)
    assert isinstance(student, tb.Student) and student.met and asked
    assert student.result.measured["latency_ms"] <= student.result.limits["latency_ms"]
    with pytest.raises(ConfigError, match="subnets: expected 8 or more, got 1"):
        supernet.fit(LIMITED, subnets=1)


def larger_is_better(genomes):
    return 0.5 + 0.02 * genomes.sum(axis=1)


def test_by_default_subnets_are_judged_on_the_runs_images(path):
    supernet = tb.Supernet.open(path, data=stripes(), exporter=FakeExporter())
    supernet.fit([tb.Target("own", FakeDevice(), {"latency": "0.8x"})], **SIZES)
    lines = [json.loads(line) for line in (path / "evaluated.jsonl").read_text().splitlines()]
    assert len(lines) >= SIZES["subnets"]
    genomes = np.array([line["genome"] for line in lines])
    (path / "evaluated.jsonl").unlink()
    known = evaluate_subnets(supernet.run, genomes)
    assert known.tolist() == [line["accuracy"] for line in lines]


def test_the_commands_open_the_same_folder(path, tmp_path):
    assert stored_images(path).images is None
    with pytest.raises(ConfigError, match=r"give --data FILE\.yaml"):
        opened(path, None)
    data = tmp_path / "data.yaml"
    data.write_text("data: {kind: 'tests.supernet.tiny:stripes'}\n")
    run = opened(path, data)
    mine = tb.Supernet.open(path, data=stripes()).run
    assert (run.weights, run.seed) == (mine.weights, mine.seed)
    assert run.data.fingerprint == mine.data.fingerprint


def test_weights_of_elsewhere_are_loaded(path, tmp_path):
    space = tb.load_space(space_in(tmp_path))
    weights = path / "supernet" / "weights.safetensors"
    loaded = tb.Supernet.load(weights, space=space, data=stripes(), run=tmp_path / "in", seed=3)
    genomes = np.stack([loaded.run.supernet.smallest(), loaded.run.supernet.largest()])
    known = evaluate_subnets(tb.Supernet.open(path, data=stripes()).run, genomes)
    assert evaluate_subnets(loaded.run, genomes).tolist() == known.tolist()


def test_grey_images_get_three_channels(tmp_path):
    supernet = trained(tmp_path / "run", grey(), validate_epochs=None)
    assert supernet.data.input_shape == (3, 12, 12)
    assert tb.Supernet.open(supernet.path, data=grey()).evaluate(subnets=1).subnets


def test_what_cannot_be_used_is_told(path, tmp_path):
    with pytest.raises(DataError, match="'stripes' has no labels"):
        tb.Supernet.open(path, data=stripes(labelled=False))
    with pytest.raises(StoreError, match="no supernet in this folder"):
        tb.Supernet.open(tmp_path, data=stripes())
    with pytest.raises(ConfigError, match="the space given has its own"):
        space = tb.load_space(space_in(tmp_path))
        tb.Supernet.train(space, data=stripes(), run=tmp_path / "run", resolutions=(64,))
    with pytest.raises(StoreError, match="begun with another job"):
        trained(path, scheme=tb.BigNAS(epochs=1))
