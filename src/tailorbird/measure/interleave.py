"""Timing of files in turns, so that whatever disturbs it hits all alike.

Each file is warmed up, then the files take turns in an order shuffled every round: one untimed and
five timed runs each. The garbage collector is off meanwhile. A very fast file runs several times
per sample, so that the clock's own cost vanishes. Where the calling thread does all the work, a
sample during which the operating system took the core away (the wall clock ran further than the
thread's own clock) is taken again, up to four times, of which the least disturbed counts: without
this, two busy processes on two cores double the median of a network of 3 ms.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError
from tailorbird.measure.rounds import steady, summary

BURST = 5
"""Timed runs of one file in a row, after one untimed run that brings its weights back to cache."""

SAMPLE_NS = 100_000
"""A timed sample lasts at least this long; faster files run several times per sample."""

ATTEMPTS = 4
"""How often a sample is taken again when another process took the core away in the middle."""

LEAST_RUNS = 15
MAX_ELEMENTS = 100_000_000
MOST_THREADS = 1024
GROUP_BYTES = 2_000_000_000
"""Files of more bytes together than this are measured in groups."""

_BESIDE_S = 7200.0
_TOLD = 5


class Runner:
    """One loaded file.

    Args:
        run: runs it once.
        alone: whether the calling thread does all the work, so that its own clock tells of samples
            that were disturbed.
        holds: what has to live as long as it.
    """

    def __init__(self, run: Callable[[], object], *, alone: bool, holds: object = None) -> None:
        self._run, self._holds = run, holds
        self._attempts = ATTEMPTS if alone and _fine_clock() else 1
        self._repeats = 1

    def warm_up(self, runs: int) -> None:
        """Run untimed, then settle how many runs make a sample."""
        for _ in range(runs):
            self._run()
        fastest = min(self.burst(BURST)) * 1e6
        self._repeats = max(1, round(SAMPLE_NS / max(fastest, 1.0)))

    def burst(self, samples: int) -> list[float]:
        """One untimed run, then ``samples`` timed ones, in ms per run."""
        self._run()
        return [self._sample() / self._repeats / 1e6 for _ in range(samples)]

    def _sample(self) -> int:
        """Wall time in ns of the least disturbed of a few attempts; mostly the first one."""
        best, least = 0, None
        for _ in range(self._attempts):
            wall, away = self._attempt()
            if least is None or away < least:
                best, least = wall, away
            if least < 0.02 * best + 5000:
                break
        return best

    def _attempt(self) -> tuple[int, int]:
        """Wall time of one sample, and how much of it this thread did not run, both in ns."""
        run, clock, own_clock = self._run, time.perf_counter_ns, time.thread_time_ns
        own = own_clock()
        start = clock()
        for _ in range(self._repeats):
            run()
        wall = clock() - start
        return wall, wall - (own_clock() - own)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """How files take turns.

    Args:
        warmup: untimed runs per file at the start.
        runs: timed samples per file.
        seed: of the order.
        seconds: bound on the timing; once spent, rounds end early, but not below 15 samples.
    """

    warmup: int
    runs: int
    seed: int
    seconds: float

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what loading and warming up may take beside `seconds`."""
        return self.seconds + _BESIDE_S

    def faults(self, threads: int, title: str) -> list[str]:
        """What is wrong with these settings, and with a number of threads."""
        found = [
            f"{title}: {name} must be at least {least}, got {value}"
            for name, value, least in (
                ("threads", threads, 1),
                ("warmup", self.warmup, 0),
                ("runs", self.runs, 1),
            )
            if value < least
        ]
        if threads > MOST_THREADS:
            found.append(f"{title}: threads must be at most {MOST_THREADS}, got {threads}")
        if not self.seconds > 0:
            found.append(f"{title}: seconds must be positive, got {self.seconds}")
        return found

    def measure(
        self,
        files: Sequence[Path],
        load: Callable[[Path], Runner],
        *,
        bytes_of: Callable[[Path], int],
        group_bytes: int = GROUP_BYTES,
    ) -> list[Latency]:
        """Latencies in the order of ``files``.

        Args:
            files: to be timed.
            load: makes one ready to run, and has run it once.
            bytes_of: how much memory it takes, about.
            group_bytes: those that take turns are held in memory together, up to this much; more
                are measured group by group.

        Raises:
            MeasurementError: what ``load`` raised, for every file that it can't load.
        """
        parts = groups([bytes_of(file) for file in files], limit=group_bytes)
        seconds = self.seconds / max(1, len(parts))
        return [
            latency
            for group in parts
            for latency in steady(partial(self._together, [files[i] for i in group], load, seconds))
        ]

    def _together(
        self, files: Sequence[Path], load: Callable[[Path], Runner], seconds: float
    ) -> list[Latency]:
        runners: list[Runner] = []
        faults: list[str] = []
        for file in files:
            try:
                runners.append(load(file))
            except MeasurementError as error:
                faults.append(str(error))
        if faults:
            more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
            raise MeasurementError("; ".join(faults[:_TOLD]) + more)
        with _undisturbed():
            rounds = self._rounds(runners, seconds)
        return [summary(samples, warmup=self.warmup) for samples in rounds]

    def _rounds(self, runners: Sequence[Runner], seconds: float) -> list[list[list[float]]]:
        """Samples in ms as [file][round][run]."""
        for runner in runners:
            runner.warm_up(self.warmup)
        samples: list[list[list[float]]] = [[] for _ in runners]
        rng = np.random.default_rng(self.seed)
        until, done = time.perf_counter() + seconds, 0
        while done < self.runs:
            burst = min(BURST, self.runs - done)
            for index in rng.permutation(len(runners)):
                samples[index].append(runners[index].burst(burst))
            done += burst
            if time.perf_counter() > until and done >= LEAST_RUNS:
                break
        return samples


def made_up(file: Path, shape: Sequence[object], seed: int) -> npt.NDArray[np.float32]:
    """A random normal value for an input; an open batch dimension becomes 1.

    Args:
        file: for messages.
        shape: of the input; what is no whole number is open.
        seed: of the value.

    Raises:
        MeasurementError: for other open dimensions, and for absurdly large inputs.
    """
    sizes = [*shape]
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = 1
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(whole) < len(sizes):
        raise MeasurementError(
            f"{file}: only the batch dimension may be open, the input is {list(shape)}; "
            "export it with fixed sizes"
        )
    elements = int(np.prod([float(size) for size in whole]))
    if elements > MAX_ELEMENTS:
        raise MeasurementError(
            f"{file}: the input {list(shape)} has {elements:,} elements, more than "
            f"{MAX_ELEMENTS:,}; export it at a smaller size"
        )
    return np.random.default_rng(seed).standard_normal(whole, dtype=np.float32)


def bytes_of(*files: Path) -> int:
    """What files take on disk together; 0 for those that are not there."""
    return sum(file.stat().st_size for file in files if file.is_file())


def first_line(error: BaseException) -> str:
    """The beginning of what a library says."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def groups(sizes: Sequence[int], *, limit: int) -> list[list[int]]:
    """Numbers of files that are held in memory together, in order, of at most ``limit`` or alone.

    Example:
        >>> groups([5, 5, 20, 1], limit=10)
        [[0, 1], [2], [3]]
    """
    groups: list[list[int]] = []
    held = 0
    for number, size in enumerate(sizes):
        if not groups or held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += size
    return groups


def _fine_clock() -> bool:
    """Whether a thread's own clock can tell."""
    return time.get_clock_info("thread_time").resolution < 1e-5


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
