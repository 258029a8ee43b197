"""A device of one's own that misbehaves: one error, whatever it does."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from tailorbird.device import ONNX, Format, Latency
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.guarded import (
    answering,
    format_of,
    measured,
    precisions_of,
    threads_of,
)
from tailorbird.targets import Place, Target

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
        ([1.0, 2.0], r"gave 1\.0 for a\.onnx, expected a tailorbird\.device\.Latency"),
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
        ([latency(1e-9), latency()], r"expected 1e-06 to 1e\+08 ms"),
        ([latency(1e12), latency()], "median_ms=1000000000000.0"),
        ([latency(runs=10**400), latency()], "and a run at least"),
        ([latency(True), latency()], "median_ms=True"),
        ([[latency()], latency()], "gave \\[Latency"),
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
        (Raising, r"the key of its device \(Raising\) raised RuntimeError\(.no connection"),
        (lambda: keyed(5), "is 5, expected text that names the device"),
        (lambda: keyed(""), "is '', expected text"),
        (lambda: keyed("a\x1b[31m"), "expected at most 500 printable characters"),
        (lambda: keyed("\ud800"), "expected at most 500 printable characters"),
        (lambda: keyed("a" * 501), "expected at most 500 printable characters"),
        (dict, "expected a device with `key` and `measure`, got dict"),
    ],
)
def test_a_key_that_names_nothing_is_told_with_the_target(device, words):
    with pytest.raises(ConfigError, match=f"target 'edge': .*{words}"):
        Target("edge", device(), {"latency": "0.5x"})


class Says:
    """A device with members of one's own."""

    key = "board"

    def __init__(self, **members):
        self.__dict__.update(members)

    def measure(self, models):
        return []


class Unread:
    key = "board"

    def _out(self):
        raise SystemExit(3)

    run = format = precisions = time_limit_s = property(_out)


IMAGES = np.zeros((2, 3, 4, 4), np.float32)
ROWS = np.ones((2, 5), np.float32)


def ask(answer):
    def run(artifact, images):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return answering(Says(run=run))(FILES[0], IMAGES)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_outputs_come_as_float32_of_their_own(kind):
    given = ROWS.astype(kind)
    found = ask(given)
    assert found.dtype == np.float32 and not np.shares_memory(found, given)
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "gave None, expected a numpy array of 2 rows"),
        ([[1.0] * 5] * 2, r"gave \[\[1\.0, 1\.0"),
        ((row for row in ROWS), "gave <generator object"),
        (ROWS[:1], r"gave an array of float32 of shape \(1, 5\)"),
        (ROWS[:, 0], r"of shape \(2,\)"),
        (ROWS[:, :0], r"of shape \(2, 0\)"),
        (ROWS.astype(np.int64), "gave an array of int64"),
        (ROWS.astype(complex), "gave an array of complex128"),
        (ROWS.astype(object), "gave an array of object"),
        (ROWS.astype(np.float64) * 1e300, "gave 10 of 10 values that are not finite"),
        (np.where(np.eye(2, 5) > 0, np.nan, ROWS), "gave 2 of 10 values that are not finite"),
        (OSError("no route"), r"raised OSError\('no route'\)"),
        (SystemExit(3), r"raised SystemExit\(3\)"),
        (ConfigError("x"), r"raised ConfigError\('x'\)"),
    ],
)
def test_a_fault_of_run_is_one_error_that_names_it(answer, words):
    begin = r"^device board: run of a\.onnx on 2 images "
    with pytest.raises(MeasurementError, match=begin + ".*" + words):
        ask(answer)


def test_errors_that_run_may_raise_and_ctrl_c_stay_what_they_are():
    for error in (ExportError("no such operator"), MeasurementError("unplugged")):
        with pytest.raises(type(error), match=f"^{error}$"):
            ask(error)
    with pytest.raises(KeyboardInterrupt):
        ask(KeyboardInterrupt())


def test_a_run_that_changes_its_images_changes_a_copy():
    images = IMAGES.copy()
    answering(Says(run=lambda path, given: given.fill(9.0) or ROWS))(FILES[0], images)
    np.testing.assert_array_equal(images, IMAGES)


def test_a_run_that_hangs_is_left_behind():
    wakes = threading.Event()
    run = answering(Says(run=lambda *_: wakes.wait(), time_limit_s=0.05))
    try:
        with pytest.raises(MeasurementError, match=r"run of a\.onnx on 2 .* within 0\.05 s; see"):
            run(FILES[0], IMAGES)
    finally:
        wakes.set()


@pytest.mark.parametrize(
    ("read", "members", "words"),
    [
        (format_of, {"format": "onnx"}, "its format is 'onnx', expected a tailorbird.device.F"),
        (format_of, {"format": None}, "its format is None"),
        (format_of, {"format": Format(3, "a")}, r"its format is Format\(name=3"),
        (format_of, {"format": Format("a", "b", "c")}, r"its format is Format\(name='a'"),
        (precisions_of, {"precisions": ()}, r"its precisions are \(\), expected a tuple"),
        (precisions_of, {"precisions": "int8"}, "its precisions are 'int8'"),
        (precisions_of, {"precisions": (8,)}, r"its precisions are \(8,\)"),
        (precisions_of, {"precisions": ("int8", "int8")}, "each once"),
        (precisions_of, {"precisions": ("int4",)}, "one or more of float32, float16, int8"),
        (answering, {"run": "fast"}, "its run is 'fast', expected a method"),
    ],
)
def test_what_a_device_says_of_itself_is_checked(read, members, words):
    with pytest.raises(MeasurementError, match=f"^device board: .*{words}"):
        read(Says(**members))


@pytest.mark.parametrize("read", [format_of, precisions_of, answering])
def test_members_that_raise_are_told(read):
    with pytest.raises(MeasurementError, match=r"^device board: its .* raised SystemExit\(3\)"):
        read(Unread())


def test_what_a_device_does_not_say_has_a_default():
    assert format_of(Says()) == ONNX
    assert precisions_of(Says()) == ("float32",)
    assert answering(Says()) is answering(None) is None
    assert threads_of(Says()) is threads_of(Unread()) is None
    assert threads_of(Says(threads=4)) == 4


def test_a_key_is_read_once_for_a_place():
    device = keyed("board")
    place = Place(device=device)
    device.key = "another"
    assert (
        place.name == place.key == Target("edge", place, {"latency": "0.5x"}).place.key == "board"
    )
    with pytest.raises(ConfigError, match=r"place 'lab': the key of its device .* is 5"):
        Place(name="lab", device=keyed(5))
