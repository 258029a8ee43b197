import gc
from pathlib import Path

import numpy as np
import pytest

from tailorbird.errors import MeasurementError
from tailorbird.measure.interleave import ATTEMPTS, LEAST_RUNS, Runner, Turns, bytes_of, made_up


class Scripted(Runner):
    def __init__(self, attempts):
        self._attempts, self._script = ATTEMPTS, iter(attempts)

    def _attempt(self):
        return next(self._script)


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([(100_000, 0)], 100_000),
        ([(4_100_000, 4_000_000), (101_000, 500)], 101_000),
        ([(9_000, 8_000), (500_000, 30_000), (8_000_000, 7_000_000), (7_500, 6_900)], 7_500),
        ([(9e6, 8e6), (5e6, 3e6), (9e6, 7e6), (8e6, 7e6), (1, 0)], 5e6),
    ],
)
def test_a_sample_cut_by_another_process_is_taken_again(attempts, expected):
    assert Scripted(attempts)._sample() == expected


class Noted:
    """Loads files; what is loaded and run is written down, repetitions left out."""

    def __init__(self):
        self.events = []

    def __call__(self, file):
        if file.name == "bad":
            raise MeasurementError(f"{file}: can't be loaded")
        self.note(f"load {file}")
        return Runner(lambda: self.note(f"run {file}"), alone=False)

    def note(self, event):
        if self.events[-1:] != [event]:
            self.events.append(event)


def turns(**changed):
    return Turns(**{"warmup": 0, "runs": 10, "seed": 0, "seconds": 60.0, **changed})


def names(*given):
    return [Path(name) for name in given]


def test_files_take_turns_in_an_order_that_the_seed_gives():
    orders = []
    for seed in (0, 0, 1):
        noted = Noted()
        turns(seed=seed, runs=60).measure(names(*"abc"), noted, bytes_of=lambda _: 1)
        orders.append(noted.events)
    assert orders[0] == orders[1] != orders[2]
    rounds = orders[0][6:]  # after loading and warming up
    assert len(rounds) > 24  # of 36 turns, where a file may have two in a row
    assert {*rounds} == {"run a", "run b", "run c"}


def test_files_are_held_together_up_to_a_number_of_bytes():
    noted = Noted()
    found = turns(seconds=1e-9, runs=10**6).measure(
        names(*"abcd"), noted, bytes_of=lambda file: 4 if file.name == "b" else 1, group_bytes=4
    )
    assert [one.runs for one in found] == [LEAST_RUNS] * 4
    assert noted.events[:6] == ["load a", "run a", "load b", "run b", "load c", "load d"]
    assert turns().measure([], noted, bytes_of=lambda _: 1) == []


def test_garbage_is_not_collected_while_files_are_timed():
    found = []
    runner = Runner(lambda: found.append(gc.isenabled()), alone=False)
    turns(runs=1).measure(names("a"), lambda _: runner, bytes_of=lambda _: 1)
    assert not any(found)
    assert gc.isenabled()


def test_every_file_that_can_not_be_loaded_is_told():
    files = [Path("good"), *(Path(str(i)) / "bad" for i in range(7))]
    with pytest.raises(MeasurementError, match=r"0/bad: can't.*4/bad: can't[^;]*; and 2 more$"):
        turns().measure(files, Noted(), bytes_of=lambda _: 1)


def test_settings_out_of_range_are_all_told():
    assert turns().faults(1, "Board") == []
    wrong = turns(warmup=-1, runs=0, seconds=float("nan")).faults(5000, "Board")
    assert wrong == [
        "Board: warmup must be at least 0, got -1",
        "Board: runs must be at least 1, got 0",
        "Board: threads must be at most 1024, got 5000",
        "Board: seconds must be positive, got nan",
    ]


def test_what_is_made_up_for_an_input_and_what_files_take(tmp_path):
    image = made_up(tmp_path, ["batch", 3, 4], 5)
    assert (image.shape, image.dtype) == ((1, 3, 4), np.float32)
    assert np.array_equal(image, made_up(tmp_path, [1, 3, 4], 5))
    for shape in ([1, "height"], [1, 0], [None, None]):
        with pytest.raises(MeasurementError, match="only the batch dimension may be open"):
            made_up(tmp_path, shape, 0)
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"345")
    assert bytes_of(tmp_path / "a", tmp_path / "b", tmp_path / "none") == 5
