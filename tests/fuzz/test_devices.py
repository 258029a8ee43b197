"""Whatever a device answers, a fit ends with students, or with targets that say why not."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tailorbird.device import ONNX, Format, Latency
from tailorbird.errors import ConfigError, ExportError, MeasurementError, StoreError
from tailorbird.export.exporter import Written
from tailorbird.export.exporters import OnnxExporter
from tailorbird.fit.candidates import Made, Network
from tailorbird.fit.fit import fit
from tailorbird.fit.settings import Settings
from tailorbird.graph.trace import trace
from tailorbird.measure.answering import run_onnx
from tailorbird.measure.latencies import Latencies
from tailorbird.runfolder import RunFolder
from tailorbird.space import Choice, Space
from tailorbird.targets import Target
from tests.fakes import FakeDevice
from tests.fit.makers import Sums
from tests.house.makers import images

from .test_readers import EXAMPLES, HANGS_AFTER, within

SHAPE = (1, 8, 8)


@cache
def network(width, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        layers = [nn.Flatten(), nn.Linear(64, 4 * width + 4), nn.Linear(4 * width + 4, 10)]
        return nn.Sequential(*layers, *[nn.ReLU()] * kind).eval()


class Small(Sums):
    """Networks of two layers on the digits, of known order; nothing is trained."""

    space = Space((Choice("width", (1, 2, 3, 4)), Choice("kind", (0, 1))))
    reference = (3, 1)

    def __init__(self, folder, data):
        super().__init__()
        self.folder, self.comparing = folder, data.choosing

    def open(self, place, timing):
        super().open(place, timing)
        return timing.reference_ms

    def latencies(self, place):
        return Latencies(self.folder, place.key)

    def network(self, key):
        return Network(network(*key), SHAPE)

    def train(self, names, *, pause=None):
        return {
            key: Made(module=trace(network(*key), SHAPE).module, input_shape=SHAPE, before=None)
            for key in names
        }


class Exporter(OnnxExporter):
    """The fast one for all files."""

    def final(self, module, input_shape, path, **_):
        self.quick([(module, tuple(input_shape))], path.parent, [path.stem])
        return Written()


class Hostile:
    """Its text, its truth and its attributes raise."""

    def __repr__(self):
        raise RuntimeError("no text")

    __bool__ = __len__ = __iter__ = __float__ = __array__ = __eq__ = __hash__ = __repr__


def raised(error):
    def call(*_):
        raise error

    return call


ERRORS = (
    OSError("no route to host"), NameError("x"), SystemExit(3), GeneratorExit(), StopIteration(),
    MemoryError(), RecursionError(), BaseException("odd"), StoreError("x"), ConfigError(["a", "b"]),
    MeasurementError("unplugged"), ExportError("no such operator"), KeyError(Hostile()),
)  # fmt: skip
PLAIN = (
    None, True, 0, -1, 5, 10**400, 1.5, float("nan"), float("inf"), "", "a", "1.0", "\ud800", b"a",
    (), [], [[1.0]], {}, {"median_ms": 1.0}, Hostile(), Latency, np.float32(2), np.zeros(3),
    torch.zeros(3),
)  # fmt: skip
FIGURES = (
    0, 0.0, -0.0, -1.0, 1e-320, 1e-6, 1e-3, 1.0, 1e8, 1e308, float("nan"), float("inf"), None, "1",
    True, 10**400, np.float32(2), np.array([1.0]), torch.tensor(2.0), 2j, Hostile(),
)  # fmt: skip


class Odd:
    """Makes devices whose members answer as they should most of the time.

    All that is odd comes from one seed: a device is asked in threads, and whatever is raised there
    is taken for its own.
    """

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def device(self):
        """An object with a device's members."""
        members = {"key": "board", "measure": lambda _, models: self.measured(models)}
        if self.rng.random() < 0.5:
            members["run"] = lambda _, artifact, images: self.answered(artifact, images)
        for name in self.rng.sample(sorted(TOLD), self.rng.choice((0, 0, 1, 2))):
            members[name] = self.rng.choice(TOLD[name])
            if self.rng.random() < 0.25:
                members[name] = property(raised(self.rng.choice(ERRORS)))
        return type("Board", (), members)()

    def measured(self, models):
        """What it answers to ``measure``."""
        right = FakeDevice(base_ms=0.001).measure(models)
        kind = self.rng.choice(("right",) * 6 + ("figures", "count", "random", "odd", "raise"))
        if kind == "raise":
            raise self.rng.choice(ERRORS)
        if kind == "odd":
            return self.rng.choice(PLAIN)
        if kind == "count":
            wrong = (right[1:], right * 2, tuple(right), iter(right), [right])
            return self.rng.choice(wrong)
        if kind == "figures":
            return [self.figures(one) for one in right]
        if kind == "random":
            return [replace(one, median_ms=10 ** self.rng.uniform(-6, 8)) for one in right]
        return right

    def figures(self, right):
        """A latency with up to two odd figures."""
        names = self.rng.sample(sorted(vars(right)), self.rng.choice((0, 1, 2)))
        return Latency(**{**vars(right), **{name: self.rng.choice(FIGURES) for name in names}})

    def answered(self, artifact, images):
        """What it answers to ``run``."""
        right = run_onnx(artifact, images)
        kind = self.rng.choice(("right",) * 6 + ("array", "odd", "raise"))
        if kind == "raise":
            raise self.rng.choice(ERRORS)
        if kind == "odd":
            return self.rng.choice(PLAIN)
        if kind == "array":
            nan = np.full_like(right, np.nan)
            wrong = (
                *(right[:1], right[:, :1], right[:, 0], right.T, right[..., None], right[:, :0]),
                *(nan, right + 1, right * 1e30, right.astype(np.float64) * 1e300),
                *(right.astype(int), right.astype(str), right.astype(object), right.tolist()),
                *(torch.from_numpy(right), (row for row in right), right.view(np.uint8)),
            )
            return self.rng.choice(wrong)
        return right


TOLD = {
    "key": ("board", *PLAIN, "a\x1b[0m", "a" * 10**4),
    "measure": PLAIN,
    "run": PLAIN,
    "format": (ONNX, Format("engine", "a"), Format(3, None), Format(Hostile(), "a"), *PLAIN),
    "precisions": (("float32",), ["int8"], ("int8", "float32"), (Hostile(),), ("a",), *PLAIN),
    "time_limit_s": (5.0, *PLAIN),
}
"""Member -> what it may be."""

BOUNDS = ({"latency": "0.6x"}, {"latency_ms": 1.0, "macs": "0.9x"})


@given(seed=st.integers(0, 2**32))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_a_device_costs_its_own_targets_only(seed):
    targets = [Target("good", FakeDevice(base_ms=0.001), {"latency": "0.9x"})]
    device = Odd(seed).device()
    try:
        targets += [Target(f"odd{number}", device, one) for number, one in enumerate(BOUNDS)]
    except ConfigError as error:
        assert str(error).startswith("target 'odd0': ")
        return
    with tempfile.TemporaryDirectory() as place, within(HANGS_AFTER):
        students = _fitted(targets, Path(place))
    good, *others = (student.result for student in students)
    assert good.met, good.reason
    for result in others:
        assert result.met or result.reason


def _fitted(targets, place):
    folder = RunFolder(place / "run")
    data = images()
    candidates = Small(place / "latency", data)
    with folder.open(None):
        return fit(
            candidates,
            targets,
            data=data,
            folder=folder,
            request=lambda target: target.name,
            settings=Settings(rounds=2, candidates=2),
            reference=lambda: candidates.network(candidates.reference),
            beside=folder.path / "teacher",
            exporter=Exporter(),
        )
