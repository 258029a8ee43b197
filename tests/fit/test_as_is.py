"""A network that was given and needs no training: shipped where the student is no better."""

from dataclasses import replace

import pytest
from torch import nn

from tailorbird.fit.as_is import ship_as_is
from tailorbird.fit.candidates import Made, Network
from tailorbird.fit.judge import Accuracies
from tailorbird.fit.pools import own_place
from tailorbird.graph.trace import trace
from tailorbird.measure.counts import count
from tailorbird.progress import Silent
from tailorbird.report.record import TargetResult
from tailorbird.targets import Place, Target
from tailorbird.task import Score
from tests.fakes import FakeDevice, FakeExporter, stand_in
from tests.fit.makers import shipping_to
from tests.house.makers import images

SHAPE = (1, 8, 8)
BOX = Place(device=FakeDevice(base_ms=0.001))
REFERENCE = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 10))


class Known:
    """Accuracies that are known; files, which have a place as well, answer as their networks do."""

    def reference(self, images=None):
        return 0.9

    def __init__(self, losses=None, apart=None, **validation):
        self.known, self.losses, self.apart = validation, losses or {}, apart or {}
        self.files, self.shipped = set(), []

    def validation(self, key, network, *, images=None):
        if isinstance(key, tuple):
            self.files.add(key[0])
            key = key[0]
        return Score(self.known[key], self.losses.get(key, 1 - self.known[key]))

    def compared(self, key, network, *, images=None):
        found = self.apart.get(key[0] if isinstance(key, tuple) else key)
        return self.validation(key, network) if found is None else Score(found, 9.0)

    def of(self, key, file, *, images=None):
        self.shipped.append(key[0])
        validation, compared = self.validation(key, file), self.compared(key, file)
        apart = None if compared == validation else compared
        return Accuracies(None, self.known[key[0]] - 0.01, validation, apart)


def donor(width):
    net = nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(width * 36, 10))
    return Made(module=trace(net, SHAPE).module, input_shape=SHAPE, before=None)


@pytest.fixture
def ship(tmp_path):
    """Ships donors beside a student of 0.8, for limits that are shares of the reference's."""
    exporter = FakeExporter()
    reference = Network(REFERENCE, SHAPE)
    shipping = shipping_to(tmp_path / "run", exporter, reference, images())
    beside = tmp_path / "reference.onnx"
    beside.write_bytes(stand_in(REFERENCE, SHAPE))
    base_ms = BOX.device.measure([beside])[0].median_ms
    base = {**count(REFERENCE, SHAPE).as_metrics(), "latency_ms": base_ms}

    def asked(judges, networks, **results):
        answered = [(Target(name, BOX, {"latency": "0.5x"}), one) for name, one in results.items()]
        found = ship_as_is(
            networks,
            answered,
            {BOX.name: base},
            judges=judges,
            shipping=shipping,
            beside=lambda _: beside,
            places=own_place,
            floors={},
            sessions=8,
            progress=Silent(),
        )
        return {result.name: result for result in found}, shipping, exporter

    return asked


def student(**changes):
    made = TargetResult(
        name="edge",
        device=BOX.key,
        limits={"latency_ms": 1.0},
        measured={"latency_ms": 0.01},
        met=True,
        validation=0.8,
        validation_loss=0.2,
        onnx="students/edge/model.onnx",
        minutes=3.0,
    )
    return replace(made, **changes)


def test_the_best_that_keeps_the_limit_is_shipped(ship):
    networks = {"small": donor(4), "middle": donor(8), "large": donor(30)}
    judges = Known(small=0.85, middle=0.88, large=0.99)
    found, shipping, _ = ship(judges, networks, edge=student())
    assert judges.files == {"middle"}, "what keeps no limits is not judged as a file"
    assert judges.shipped == ["middle"], "only what is shipped answers the test images"
    edge = found["edge"]
    assert edge.as_is == "middle" and edge.met and edge.replaced == ()
    assert (edge.accuracy, edge.validation, edge.minutes) == (0.87, 0.88, 3.0)
    assert edge.measured["latency_ms"] <= edge.limits["latency_ms"]
    home = shipping.home("edge")
    assert edge.onnx == "students/edge/model.onnx"
    exact = BOX.device.measure([home / "model.onnx"])[0].median_ms
    assert edge.measured["latency_ms"] == pytest.approx(exact)
    assert (home / "student.json").exists() and (home / "verify.json").exists()


def test_less_accurate_networks_are_not_even_exported(ship):
    found, shipping, exporter = ship(Known(small=0.7), {"small": donor(4)}, edge=student())
    assert not found and not exporter.exported and not shipping.home("edge").exists()


def test_a_target_without_a_student_gets_one(ship):
    none = student(met=False, validation=None, measured={}, onnx=None)
    found, _, _ = ship(
        Known(small=0.2, large=0.9), {"small": donor(4), "large": donor(30)}, edge=none
    )
    assert found["edge"].as_is == "small"


@pytest.mark.parametrize(
    ("accuracy", "loss", "shipped"),
    [(0.8, 0.2, True), (0.8, 0.21, False), (0.81, 0.5, True), (0.79, 0.1, False)],
)
def test_one_that_is_at_least_as_accurate_is_shipped(ship, accuracy, loss, shipped):
    judges = Known(losses={"small": loss}, small=accuracy)
    found, _, exporter = ship(judges, {"small": donor(4)}, edge=student())
    assert ("edge" in found) == bool(exporter.exported) == shipped


@pytest.mark.parametrize(("apart", "shipped"), [(0.64, False), (0.65, True), (0.7, True)])
def test_what_it_knows_by_heart_does_not_count(ship, apart, shipped):
    judges = Known(apart={"small": apart}, small=1.0)
    own = student(validation=0.96, validation_loss=0.2, compared=0.65)
    found, _, _ = ship(judges, {"small": donor(4)}, edge=own)
    assert ("edge" in found) == shipped
    if shipped:
        assert (found["edge"].validation, found["edge"].compared) == (1.0, apart)


def test_of_equal_networks_that_were_given_one_is_shipped_and_kept(ship):
    networks = {"large": donor(8), "small": donor(4)}
    found, _, exporter = ship(Known(small=0.9, large=0.9), networks, edge=student())
    assert found["edge"].as_is == "large" and len(exporter.exported) == 1
    own = student(as_is="large", validation=0.9, validation_loss=1 - 0.9)
    assert not ship(Known(small=0.9, large=0.9), networks, edge=own)[0]


def test_one_that_cannot_be_exported_costs_nothing(ship):
    broken = donor(4)
    found, _, exporter = ship(Known(small=0.9), {"small": broken}, edge=student())
    assert found
    exporter.passes = False
    assert not ship(Known(small=0.95), {"small": broken}, edge=student())[0]
