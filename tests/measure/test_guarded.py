"""A device of one's own that misbehaves: one error, whatever it does."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.measure.guarded import measured
from tailorbird.targets import Latency, Target

FILES = [Path("a.onnx"), Path("b.onnx")]


def latency(median=1.0, spread=0.0, runs=1, warmup=0):
    return Latency(median_ms=median, spread_ms=spread, runs=runs, warmup=warmup)


class Own:
    """A device whose answer is given, or raised."""

    key = "board"

    def __init__(self, answer):
        self.answer = answer

    def measure(self, models):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Mute:
    def __repr__(self):
        raise RuntimeError("no text")


def test_a_right_answer_is_handed_on():
    assert measured(Own([latency(1.0), latency(2.0)]), FILES) == [latency(1.0), latency(2.0)]
    assert measured(Own([]), []) == []
    numpy = latency(np.float32(0.5), np.float32(0), np.int64(3), np.int64(1))
    assert measured(Own((numpy, numpy)), FILES)[0] == latency(0.5, 0.0, 3, 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OSError("no route to host"), r"raised OSError\('no route to host'\)"),
        (NameError("x"), r"raised NameError\('x'\)"),
        (SystemExit(3), r"raised SystemExit\(3\)"),
        (None, "returned NoneType, expected a list"),
        ("ab", "returned str, expected a list"),
        (iter([]), "returned list_iterator, expected a list"),
        ([latency()], "returned 1 figures, expected one per file"),
        ([latency()] * 3, "returned 3 figures"),
        ([1.0, 2.0], r"gave 1\.0 for a\.onnx, expected a tailorbird\.targets\.Latency"),
        ([latency(), {"median_ms": 1.0}], r"gave \{'median_ms': 1\.0\} for b\.onnx"),
        (
            [latency(), latency(math.nan)],
            r"gave Latency\(median_ms=nan.* for b\.onnx, expected",
        ),
        ([latency(math.inf), latency()], r"gave Latency\(median_ms=inf"),
        ([latency(-1.0), latency()], r"gave Latency\(median_ms=-1\.0"),
        ([latency("1.0"), latency()], r"gave Latency\(median_ms='1\.0'"),
        ([latency(None), latency()], r"for a\.onnx: float\(\) argument"),
        ([latency(spread=math.nan), latency()], "spread_ms=nan"),
        ([latency(0.0), latency()], r"gave Latency\(median_ms=0\.0"),
        ([latency(runs=-3), latency()], "runs=-3"),
        (GeneratorExit(), "raised GeneratorExit"),
        ([Mute(), latency()], "gave a Mute for"),
    ],
)
def test_a_fault_is_one_error_that_names_it(answer, words):
    with pytest.raises(MeasurementError, match=f"^device board: measure of 2 files .*{words}"):
        measured(Own(answer), FILES)


def test_its_own_error_and_ctrl_c_stay_what_they_are():
    with pytest.raises(MeasurementError, match=r"^unplugged$"):
        measured(Own(MeasurementError("unplugged")), FILES)
    with pytest.raises(KeyboardInterrupt):
        measured(Own(KeyboardInterrupt()), FILES)


class Hanging(Own):
    time_limit_s = 0.05

    def measure(self, models):
        self.answer.wait()


def test_a_device_that_hangs_is_left_behind():
    wakes = threading.Event()
    try:
        with pytest.raises(MeasurementError, match=r"2 files did not end within 0\.05 s; see"):
            measured(Hanging(wakes), FILES)
    finally:
        wakes.set()


@pytest.mark.parametrize("limit", ["5", float("nan"), -1, 0])
def test_a_time_limit_that_is_none_is_told(limit):
    device = Own([])
    device.time_limit_s = limit
    with pytest.raises(MeasurementError, match=r"time_limit_s is .*, expected seconds or None"):
        measured(device, [])


class Changing(Own):
    def __init__(self):
        self.count = 0

    @property
    def key(self):
        self.count += 1
        return f"board {self.count}"


class Raising(Own):
    def __init__(self):
        pass

    @property
    def key(self):
        raise RuntimeError("no connection")


def keyed(key):
    device = Own([])
    device.key = key
    return device


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (Changing, r"the key of its device \(Changing\) changes: 'board \d', then 'board \d'"),
        (Raising, r"the key of its device \(Raising\) raises RuntimeError: no connection"),
        (lambda: keyed(5), "is 5, expected text that names the device"),
        (lambda: keyed(""), "is '', expected text"),
        (dict, "expected a device with `key` and `measure`, got dict"),
    ],
)
def test_a_key_that_names_nothing_is_told_with_the_target(device, words):
    with pytest.raises(ConfigError, match=f"target 'edge': .*{words}"):
        Target("edge", device(), {"latency": "0.5x"})
