"""A search for many targets from Python: what is priced, what is described, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from tailorbird.cli.outputs import check_outputs
from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.features import architecture_features
from tailorbird.estimate.learned_latency import LatencyModel, LayerFeatures
from tailorbird.estimate.predicted import PredictedFamily
from tailorbird.estimate.predictor_files import open_predictor
from tailorbird.estimate.train_predictor import fit
from tailorbird.pipeline.search import describe, price, search
from tailorbird.search.baselines import Exhaustive
from tailorbird.search.many_targets import AllAtOnce
from tailorbird.supernet.architecture import load_space
from tailorbird.targets import LATENCY, Place, Target

from .fleets import RESOLUTIONS, SPACE, write_predictor, write_table

QUICK = AllAtOnce(generations=3, children=40, evaluated=20)


@pytest.fixture
def phone(tmp_path):
    return write_table(tmp_path / "phone")


def fleet(*tables: Path | None) -> list[Place]:
    return [Place(name=f"d{number}", table=table) for number, table in enumerate(tables)]


def at(table: Path, *limits: float | str) -> list[Target]:
    place = Place(name="phone", table=table)
    return [Target(f"t{n}", place, {LATENCY: limit}) for n, limit in enumerate(limits)]


def test_a_space_is_restricted_to_the_resolutions_that_all_tables_cover(phone, tmp_path):
    board = write_table(tmp_path / "board")
    (board / "176.yaml").unlink()
    assert price(SPACE, fleet(phone)).architectures.space.choices[0].values == RESOLUTIONS
    priced = price(SPACE, fleet(phone, board))
    assert priced.architectures.space.choices[0].values == (160,)
    assert set(priced.costs) == {"macs", "params", "latency_ms@d0", "latency_ms@d1"}
    assert set(price(SPACE, fleet(phone, None)).costs) == {"macs", "params", "latency_ms@d0"}
    (phone / "160.yaml").unlink()
    with pytest.raises(ConfigError, match=r"that all of them cover, got d0: 176; d1: 160; the sp"):
        price(SPACE, fleet(phone, board))


def test_tables_that_lack_layers_are_all_named(tmp_path):
    tables = [write_table(tmp_path / name, left_out=2) for name in ("a", "b")]
    with pytest.raises(SpaceError, match=r"(?s)d0: .*a lacks 2 of the .*; d1: .*b lacks 2 of the"):
        price(SPACE, fleet(*tables))


def test_a_table_of_another_width_says_so(phone):
    with pytest.raises(SpaceError, match="another supernet or width multiplier"):
        price("compofa-mbv3-w1.0", fleet(phone))


def test_each_winner_keeps_its_own_device_s_limit(phone, tmp_path):
    slow = write_table(tmp_path / "slow", scale=3)
    bounds = [
        {"latency_ms@d0": 11.0},
        {"latency_ms@d1": 33.0},
        {"latency_ms@d1": 30.0, "macs": 260e6},
    ]
    priced = price(SPACE, fleet(phone, slow))
    predictor = open_predictor(write_predictor(tmp_path / "p.safetensors"), priced.architectures)
    first, second, both = QUICK.search(priced.family(predictor), bounds, seed=0).winners
    assert first.quality == second.quality  # three times the latency, three times the limit
    assert both.cost["latency_ms@d1"] <= 30.0 and both.cost["macs"] <= 260e6
    for winner in (first, second, both):
        assert winner.cost["latency_ms@d1"] == pytest.approx(3 * winner.cost["latency_ms@d0"])
        [row] = describe(priced, priced.architectures.architectures(winner.genome[None]), predictor)
        assert row["latency_ms@d0"] == pytest.approx(winner.cost["latency_ms@d0"])
        assert row["predicted_accuracy"] == pytest.approx(winner.quality, rel=1e-6)


def test_a_predictor_of_one_s_own_serves_a_restricted_space(phone, tmp_path):
    space = load_space(SPACE)
    genomes = space.space.sample(60, np.random.default_rng(0))
    fit(genomes, genomes.sum(axis=1), architecture_features(space)).save(tmp_path / "own")
    found = search(
        at(phone, 9, 20), space=SPACE, accuracy_predictor=tmp_path / "own", strategy=Exhaustive()
    )
    assert found.winners[0].quality < found.winners[1].quality
    largest = found.winners[1].genome  # nothing binds: the largest network of 176 pixels
    assert largest[1:].tolist() == [2] * 5 and largest[0] == 1


def test_a_learned_latency_model_stands_for_a_table(phone, tmp_path):
    whole = load_space(SPACE)
    genomes = whole.space.sample(12, np.random.default_rng(0))
    model = LatencyModel.fit(genomes, 5.0 + genomes.sum(axis=1) / 10, features=LayerFeatures(whole))
    path = tmp_path / "board.safetensors"
    model.save(path)
    both = price(SPACE, fleet(phone, path))
    assert both.architectures.space.choices[0].values == RESOLUTIONS
    (metric,) = [metric for metric in both.costs if metric.endswith("1")]
    few = both.architectures.space.sample(5, np.random.default_rng(1))
    same = whole.genomes(both.architectures.architectures(few))
    np.testing.assert_allclose(both.costs[metric](few), model.latency_ms(same), rtol=1e-9)
    with pytest.raises(StoreError, match=r"gone\.safetensors"):
        price(SPACE, fleet(tmp_path / "gone.safetensors"))


def test_an_unknown_device_or_metric_names_those_there_are(phone, tmp_path):
    family = price(SPACE, fleet(phone, phone)).family(lambda genomes: np.ones(len(genomes)))
    with pytest.raises(ConfigError) as caught:
        QUICK.search(family, [{"latency_ms@d7": 9.0}, {"energy": 1.0}, {"macs": -1.0}], seed=0)
    known = "give one of macs, params, latency_ms@d0, latency_ms@d1"
    assert caught.value.problems == (
        f"limits[0]: unknown metric 'latency_ms@d7'; {known}",
        f"limits[1]: unknown metric 'energy'; {known}",
        "limits[2]: macs has to be above 0, got -1.0",
    )


def test_predictions_that_are_no_numbers_are_told_with_the_first_genome(phone):
    priced = price(SPACE, fleet(phone))

    def broken(genomes):
        return np.where(genomes[:, 1] == 2, np.nan, 0.5)

    with pytest.raises(SpaceError, match=r"quality is not a finite number for \d+ of \d+ genomes"):
        QUICK.search(priced.family(broken), [{"latency_ms": 20.0}], seed=0)
    family = PredictedFamily(
        space=priced.architectures.space,
        predictor=lambda genomes: np.ones(len(genomes)),
        costs={"latency_ms": broken},
    )
    with pytest.raises(SpaceError, match="latency_ms is not a finite number for"):
        QUICK.search(family, [{"latency_ms": 20.0}], seed=0)


def test_genomes_and_architectures_outside_the_space(phone):
    priced = price(SPACE, fleet(phone))
    with pytest.raises(SpaceError, match="row 0: r=224, expected one of"):
        describe(priced, [{"d": [2] * 5, "r": 224}], None)
    with pytest.raises(SpaceError):
        priced.architectures.architectures(np.full((1, 6), 9))


def test_the_order_of_limits_and_repetitions_do_not_matter(phone, tmp_path):
    predictor = write_predictor(tmp_path / "p.safetensors")
    found = [
        search(at(phone, *limits), space=SPACE, accuracy_predictor=predictor, strategy=Exhaustive())
        for limits in ((9, 10, 12), (12, 9, 12, 10, 9))
    ]
    best = {winner.limits["latency_ms"]: winner.quality for winner in found[0].winners}
    assert [winner.limits["latency_ms"] for winner in found[1].winners] == [12, 9, 12, 10, 9]
    assert all(w.quality == best[w.limits["latency_ms"]] for w in found[1].winners)


def test_outputs_are_tried_and_leave_what_is_there(tmp_path):
    (tmp_path / "old").write_text("older")
    check_outputs({"--json": tmp_path / "old", "--csv": tmp_path / "new" / "x", "--plot": None})
    assert (tmp_path / "old").read_text() == "older"
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(ConfigError, match="expected a file to write, got the folder"):
        check_outputs({"--json": tmp_path})
    with pytest.raises(StoreError, match=r"can't write .*/old/x: .*nothing has been searched yet"):
        check_outputs({"--json": tmp_path / "old" / "x"})


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a user whom a folder can refuse"
)
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"can't write .*: Permission denied"):
        check_outputs({"--json": tmp_path / "x"})


def test_shares_are_of_the_largest_network_that_the_tables_know(phone, tmp_path):
    board = write_table(tmp_path / "board")
    (board / "176.yaml").unlink()
    places = fleet(phone, board, None)
    priced = price(SPACE, places)
    largest = (priced.architectures.space.sizes - 1)[None]
    full = {name: float(of(largest)[0]) for name, of in priced.costs.items()}
    first = Target("a", places[0], {"latency": "0.5x", "macs": "0.75x"})
    assert priced.bounds(first) == {
        "latency_ms@d0": pytest.approx(0.5 * full["latency_ms@d0"]),
        "macs": pytest.approx(0.75 * full["macs"]),
    }
    last = Target("b", places[2], {"params": 5e6, "size": "0.5x"})
    assert priced.bounds(last) == {"params": 5e6, "size_mb": 0.5}


def test_metrics_without_a_figure_are_refused_with_those_there_are(phone, tmp_path):
    place = Place(name="phone", table=phone)
    targets = [
        Target("a", place, {"size_mb": 4}),
        Target("b", place, {"peak_memory": "0.5x"}),
        Target("c", Place(name="bare"), {"latency_ms": 9}),
    ]
    asked = {"space": SPACE, "accuracy_predictor": write_predictor(tmp_path / "p.safetensors")}
    with pytest.raises(ConfigError) as caught:
        search(targets, **asked, strategy=QUICK)
    known = "give one of macs, params, latency_ms@phone"
    assert caught.value.problems == (
        f"limits[0]: unknown metric 'size_mb'; {known}",
        f"limits[1]: unknown metric 'peak_memory_mb'; {known}",
        f"limits[2]: unknown metric 'latency_ms@bare'; {known}",
    )
    with pytest.raises(ConfigError, match="places: 'phone' is the name of two"):
        search(
            [*targets[:1], Target("d", Place(name="phone"), {"macs": 1e8})], **asked, strategy=QUICK
        )


def test_images_per_second_are_a_latency_and_an_accuracy_is_refused(phone):
    priced = price(SPACE, fleet(phone))
    place = Place(name="d0", table=phone, batch=4)
    largest = float(priced.costs["latency_ms"]((priced.architectures.space.sizes - 1)[None])[0])
    limits = {"images_per_second": 200, "latency": "0.5x", "macs": 3e8}
    assert priced.bounds(Target("a", place, limits)) == {
        "latency_ms": pytest.approx(min(20.0, largest / 2)),
        "macs": 3e8,
    }
    given = {"space": SPACE, "accuracy_predictor": phone / "unread", "strategy": QUICK}
    with pytest.raises(ConfigError) as caught:
        search([Target("a", place, {"accuracy": 0.8, "accuracy_loss": 1})], **given)
    assert len(caught.value.problems) == 2
    assert "target 'a': limit accuracy: a search is for the most accurate" in str(caught.value)
