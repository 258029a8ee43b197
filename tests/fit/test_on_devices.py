"""From candidates to files in int8 on real runtimes: ONNX Runtime, and OpenVINO where it is."""

import importlib.util
import json
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx
import pytest
import torch

from tailorbird.data.digits import digits
from tailorbird.fit.candidates import Judgement, Made, Network, latency_at
from tailorbird.fit.fit import fit
from tailorbird.fit.settings import Settings
from tailorbird.graph.trace import trace
from tailorbird.measure.counts import count
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.measure.latencies import Latencies
from tailorbird.runfolder import RunFolder
from tailorbird.search.baselines import Exhaustive
from tailorbird.space import Choice, Space
from tailorbird.targets import Place, Target
from tailorbird.train.evaluate import accuracy
from tailorbird.train.fit import fit as train
from tailorbird.train.recipe import Recipe
from tests.fakes import Told
from tests.fit.makers import Sums
from tests.train.quantised.makers import Net

SHAPE = (1, 8, 8)
WIDTHS = (8, 16, 32)
HERE = OnnxRuntime(threads=1, runs=15, warmup=1)
EPOCHS = Recipe.named("standard", epochs=4, batch_size=64, learning_rate=0.1)


class Zoo(Sums):
    """Trained networks of several widths; the widest is the reference."""

    space = Space((Choice("width", WIDTHS),))
    reference = (len(WIDTHS) - 1,)

    def __init__(self, folder, networks, data):
        super().__init__()
        self.folder, self.networks, self.data, self.ms = folder, networks, data, {}

    @cached_property
    def counts(self):
        return [count(one, SHAPE).as_metrics() for one in self.networks]

    def cost(self, genomes):
        rows = genomes[:, 0]
        found = {
            metric: np.array([c[metric] for c in self.counts])[rows] for metric in self.counts[0]
        }
        return found | {at: np.array(ms)[rows] for at, ms in self.ms.items()}

    def quality(self, genomes):
        return genomes[:, 0].astype(float)

    def latencies(self, place):
        return Latencies(self.folder, place.key)

    def open(self, place, timing):
        named = {self.label((i,)): (lambda i=i: self.network((i,))) for i in range(len(WIDTHS))}
        timed = timing.measure(named)
        self.ms[latency_at(place)] = [timed[name].median_ms for name in named]
        return timing.reference_ms

    def learn(self, place, measured_ms):
        """All were measured."""

    def network(self, key):
        return Network(self.networks[key[0]], SHAPE)

    def judge(self, keys):
        found = [accuracy(self.networks[key[0]], self.data.validation) for key in keys]
        return [Judgement(one, one) for one in found]

    @property
    def comparing(self):
        return self.data.choosing

    def weigh(self, network, images=None, *, trained=False):
        found = accuracy(network.module, self.data.validation, limit=images)
        return Judgement(found, found)

    def train(self, names, *, pause=None):
        return {
            key: Made(module=self.networks[key[0]], input_shape=SHAPE, before=None) for key in names
        }


@pytest.fixture(scope="module")
def data():
    return digits(image_size=8)


@pytest.fixture(scope="module")
def networks(data):
    """Trained, one for each width."""
    found = []
    for width in WIDTHS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            module = Net(width=width)
        trained = train(module, data, recipe=EPOCHS, seed=0).module
        found.append(trace(trained.eval(), SHAPE).module)
    return found


@pytest.fixture
def fitted(tmp_path, networks, data):
    """Fits targets in a folder of its own; students, the folder, and what was said."""

    def run(*targets, data=data, **settings):
        zoo, told = Zoo(tmp_path / "latencies", networks, data), Told()
        folder = RunFolder(tmp_path / "run")
        with folder.open({"a": 1}):
            found = fit(
                zoo,
                targets,
                data=data,
                folder=folder,
                request=lambda target: target.name,
                settings=Settings(sessions=1, **settings),
                reference=lambda: zoo.network(zoo.reference),
                beside=tmp_path / "run" / "reference",
                strategy=Exhaustive(),
                progress=told,
            )
        return [one.result for one in found], tmp_path / "run", told.lines

    return run


def answers(device, path, data):
    """Accuracy of a file, counted by hand."""
    right = total = 0
    for images, labels in data.test.batches(64):
        outputs = device.run(path, images.numpy())
        right += int((outputs.argmax(1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def check_int8(result, run, device, data):
    """What is said of a file in int8 is true of the file."""
    assert result.met and result.precision == "int8"
    path = run / result.onnx
    beside = [path.with_name(name) for name in device.format.beside]
    size = sum(one.stat().st_size for one in (path, *beside)) / 1e6
    assert result.measured["size_mb"] == pytest.approx(size)
    assert result.accuracy == pytest.approx(answers(device, path, data))
    told = json.loads((path.parent / "verify.json").read_text())
    assert told["precision"] == "int8" and told["top1_agreement"] > 0.9
    assert told["quantised"]["calibration"]
    lost = 100 * (told["accuracy_float32"] - told["accuracy"])
    assert told["quantised"]["loss"] == pytest.approx(lost)
    assert (path.parent / "student.safetensors").exists()
    assert result.conditions["cores"] >= 1 and result.conditions["runtime"]


def test_a_limit_that_only_int8_keeps_is_kept_by_the_reference_itself(fitted, networks, data):
    plain, both = small_targets(networks)
    (narrow, result), run, _ = fitted(plain, both)
    check_int8(result, run, HERE, data)
    assert result.measured["size_mb"] <= both.limits[0].value
    assert result.measured["params"] == count(networks[-1], SHAPE).params
    assert narrow.met and narrow.precision == "float32", "it asked for nothing else"
    assert narrow.measured["params"] < result.measured["params"]


def small_targets(networks):
    """A limit on the size that the widest network keeps in int8 only."""
    limits = {"size_mb": 0.6 * count(networks[-1], SHAPE).size_mb}
    return Target("plain", HERE, limits, precisions=("float32",)), Target("both", HERE, limits)


def test_files_of_openvino_go_the_same_way(fitted, data):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install tailorbird[openvino]")
    device = OpenVino(threads=1, runs=15, warmup=1)
    limits = {"latency_ms": 1000.0}
    [result], run, _ = fitted(Target("gateway", device, limits, precisions=("int8",)))
    assert result.onnx == "students/gateway/model.xml"
    check_int8(result, run, device, data)


def test_calls_of_several_images_are_what_is_exported_and_timed(fitted):
    place = Place(device=HERE, batch=8)
    [result], run, _ = fitted(
        Target("many", place, {"images_per_second": 1.0}, precisions=("float32",))
    )
    assert result.met
    [entry] = onnx.load(run / result.onnx).graph.input
    assert [dim.dim_value for dim in entry.type.tensor_type.shape.dim] == [8, *SHAPE]
    rate = 8000 / result.measured["latency_ms"]
    assert result.measured["images_per_second"] == pytest.approx(rate)
    assert result.limits == {"latency_ms": 8000.0}


def test_a_limit_on_accuracy_is_kept_by_the_file(fitted):
    [result], _, _ = fitted(Target("edge", HERE, {"accuracy_loss": 3.0}))
    assert result.met and result.accuracy >= result.least["accuracy"]
    assert result.least["accuracy"] == pytest.approx(result.teacher_accuracy - 0.03)


def test_too_few_images_to_calibrate_cost_int8_only(fitted, data):
    few = replace(data, train=data.train.take(torch.arange(15)))
    limits = {"latency_ms": 1000.0}
    auto, only = Target("auto", HERE, limits), Target("only", HERE, limits, precisions=("int8",))
    (plain, none), _, _ = fitted(auto, only, data=few)
    assert plain.met and plain.precision == "float32"
    [note] = plain.notes
    assert note.startswith("int8: int8 needs 16 or more training images") and "got 15" in note
    assert not none.met and "got 15" in none.reason
