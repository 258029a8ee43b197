"""Latency of ONNX files with ONNX Runtime on this machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tailorbird.device import ONNX, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.measure.answering import run_onnx
from tailorbird.measure.conditions import processor, this_machine
from tailorbird.measure.rounds import steady, summary
from tailorbird.measure.sizes import check_sizes

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BURST = 5
"""Timed runs of one model in a row, after one untimed run that brings its weights back to cache."""

SAMPLE_NS = 100_000
"""A timed sample lasts at least this long; faster models run several times per sample."""

ATTEMPTS = 4
"""How often a sample is taken again when another process took the core away in the middle."""

LEAST_RUNS = 15
MAX_ELEMENTS = 100_000_000
MOST_THREADS = 1024
_BESIDE_S = 7200.0
GROUP_BYTES = 2_000_000_000
"""Files of more bytes together than this are measured in groups."""


_PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "CPUExecutionProvider": ("float32", "int8"),
    "CUDAExecutionProvider": ("float32", "float16"),
    "TensorrtExecutionProvider": ("float32", "float16"),
    "NvTensorRTRTXExecutionProvider": ("float32", "float16"),
    "DmlExecutionProvider": ("float32", "float16"),
    "CoreMLExecutionProvider": ("float32", "float16"),
    "OpenVINOExecutionProvider": ("float32", "int8"),
}
"""What providers have kernels for, as far as files are made that suit them.

The CPU provider has no kernels in float16: it converts to float32 and back around each operator.
CUDA and DirectML have hardly any in int8, and TensorRT takes no zero points but 0, which files
made here have. Providers that are not listed are asked for float32 only.
"""


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime:
    """Times ONNX files in this process, at batch 1 where it is open.

    Implements :class:`tailorbird.device.Runtime`.

    Each model is warmed up, then the models take turns in an order shuffled every round: one
    untimed and five timed runs each, so that drift, other load and neighbours hit all alike. The
    garbage collector is off meanwhile. Inputs and outputs are bound beforehand (this saves about
    1.5 us a run against passing arrays); a very fast model runs several times per sample, so that
    the clock's own cost vanishes. With one thread on the CPU, a sample during which the operating
    system took the core away (the wall clock ran further than the thread's own clock) is taken
    again, up to four times, of which the least disturbed counts: without this, two busy processes
    on two cores double the median of a network of 3 ms. Reported are the median over rounds of
    each round's median, and the interquartile range over all samples. What a call itself costs
    (some microseconds) is part of the figure, as it is for whoever deploys the file. Latencies of
    one call compare to within about half a percent; between calls a processor's clock may drift by
    some percent, so measure what is to be compared (a student and its teacher) in one call.

    Sessions run sequentially with graph optimisation at the highest level. With one thread the
    calling thread does all the work; with more, the pool spins within a run as is ONNX Runtime's
    default, and stops between runs so that waiting sessions steal no time. Threads are not
    pinned to cores.

    Args:
        threads: intra-op threads.
        provider: ONNX Runtime's execution provider; it must run, there is no silent fall-back.
        warmup: untimed runs per model at the start.
        runs: timed samples per model.
        seed: of the random normal input.
        seconds: bound on the timing; once spent, rounds end early, but not below 15 samples
            (``Latency.runs`` tells how many were taken).

    Raises:
        ConfigError: listing all wrong arguments, and the providers that are available.

    Example:
        >>> OnnxRuntime(threads=1).key
        'onnxruntime ..., CPUExecutionProvider, 1 thread, ...'
    """

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    warmup: int = 10
    runs: int = 100
    seed: int = 0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        problems = [
            f"OnnxRuntime: {name} must be at least {least}, got {value}"
            for name, value, least in (
                ("threads", self.threads, 1),
                ("warmup", self.warmup, 0),
                ("runs", self.runs, 1),
            )
            if value < least
        ]
        if self.threads > MOST_THREADS:
            problems.append(
                f"OnnxRuntime: threads must be at most {MOST_THREADS}, got {self.threads}"
            )
        if not self.seconds > 0:
            problems.append(f"OnnxRuntime: seconds must be positive, got {self.seconds}")
        if self.provider not in available:
            problems.append(
                f"OnnxRuntime: provider {self.provider!r} is not available here; choose one of "
                f"{', '.join(available)}, or install the onnxruntime build that has it"
            )
        if problems:
            raise ConfigError(problems)

    @cached_property
    def key(self) -> str:
        """Runtime version, provider, threads and processor."""
        import onnxruntime

        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"onnxruntime {onnxruntime.__version__}, {self.provider}, {threads}, {processor()}"

    def measure(self, models: Sequence[Path], *, group_bytes: int = GROUP_BYTES) -> list[Latency]:
        """Time each file; the latencies come in the order of ``models``.

        Args:
            models: ONNX files.
            group_bytes: those that take turns are held in memory together, up to this many bytes
                of files; more are measured group by group.

        Raises:
            MeasurementError: naming every file that can't be run (missing, damaged, more than
                one input, open dimensions besides the batch, operator unknown to the provider)
                and why.
        """
        groups = _groups(models, limit=group_bytes)
        seconds = self.seconds / len(groups)
        return [
            latency
            for group in groups
            for latency in steady(partial(self._measure_together, group, seconds))
        ]

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what loading and warming up may take beside `seconds`."""
        return self.seconds + _BESIDE_S

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """float16 where the provider computes in it; int8 where it has kernels for it."""
        return _PRECISIONS.get(self.provider, ("float32",))

    @property
    def format(self) -> Format:
        """ONNX files."""
        return ONNX

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers to images (n, C, H, W), on this provider and number of threads.

        Raises:
            ExportError: when it can't be run on these images.
        """
        return run_onnx(artifact, images, provider=self.provider, threads=self.threads)

    def describe(self) -> Description:
        """This machine, and the conditions that it is in now."""
        import onnxruntime

        return this_machine(f"ONNX Runtime, {self.provider}", onnxruntime.__version__)

    def _measure_together(self, models: Sequence[Path], seconds: float) -> list[Latency]:
        runners: list[_Runner] = []
        faults: list[str] = []
        for model in models:
            try:
                runners.append(self._runner(model))
            except MeasurementError as error:
                faults.append(str(error))
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise MeasurementError("; ".join(faults[:5]) + more)
        with _undisturbed():
            rounds = self._rounds(runners, seconds)
        return [summary(samples, warmup=self.warmup) for samples in rounds]

    def _rounds(self, runners: Sequence[_Runner], seconds: float) -> list[list[list[float]]]:
        """Samples in ms as [model][round][run]."""
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

    @property
    def _alone(self) -> bool:
        """Whether the calling thread does all the work and its own clock can tell."""
        fine = time.get_clock_info("thread_time").resolution < 1e-5
        return self.threads == 1 and self.provider == "CPUExecutionProvider" and fine

    def _runner(self, model: Path) -> _Runner:
        """Load one file and run it once.

        Raises:
            MeasurementError: naming the file and the cause.
        """
        import onnxruntime

        if not model.is_file():
            raise MeasurementError(f"{model}: there is no such file")
        check_sizes(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        if self.threads > 1:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=[self.provider])
            session.disable_fallback()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise MeasurementError(
                f"{model}: {self.provider} can't load it: {_short(error)}; export it again"
            ) from error
        if self.provider not in session.get_providers():
            raise MeasurementError(
                f"{model}: {self.provider} did not start (its libraries may be missing), only "
                f"{', '.join(session.get_providers())} did; choose one of those"
            )
        image = _input(model, session, np.random.default_rng(self.seed))
        try:
            return _Runner(session, image, alone=self._alone)
        except Exception as error:
            raise MeasurementError(
                f"{model}: {self.provider} can't run it: {_short(error)}"
            ) from error


class _Runner:
    """A session with its input and outputs bound; the first run happens here."""

    def __init__(
        self,
        session: InferenceSession,
        image: tuple[str, npt.NDArray[np.float32]],
        *,
        alone: bool,
    ) -> None:
        from onnxruntime import OrtValue

        name, value = image
        outputs = [output.name for output in session.get_outputs()]
        results = session.run(outputs, {name: value})
        self._session = session
        self._binding = session.io_binding()
        self._held = [OrtValue.ortvalue_from_numpy(array) for array in (value, *results)]
        self._binding.bind_ortvalue_input(name, self._held[0])
        for output, held in zip(outputs, self._held[1:], strict=True):
            self._binding.bind_ortvalue_output(output, held)
        self._attempts = ATTEMPTS if alone else 1
        self._repeats = 1

    def warm_up(self, runs: int) -> None:
        """Run untimed, then settle how many runs make a sample."""
        run, binding = self._session.run_with_iobinding, self._binding
        for _ in range(runs):
            run(binding)
        fastest = min(self.burst(BURST)) * 1e6
        self._repeats = max(1, round(SAMPLE_NS / max(fastest, 1.0)))

    def burst(self, samples: int) -> list[float]:
        """One untimed run, then ``samples`` timed ones, in ms per run."""
        self._session.run_with_iobinding(self._binding)
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
        run, binding = self._session.run_with_iobinding, self._binding
        clock, own_clock = time.perf_counter_ns, time.thread_time_ns
        own = own_clock()
        start = clock()
        for _ in range(self._repeats):
            run(binding)
        wall = clock() - start
        return wall, wall - (own_clock() - own)


def _input(
    model: Path, session: InferenceSession, rng: np.random.Generator
) -> tuple[str, npt.NDArray[np.float32]]:
    """Name and random value of the one input; an open batch dimension becomes 1."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise MeasurementError(f"{model}: expected one input, found {len(inputs)}")
    (entry,) = inputs
    if entry.type != "tensor(float)":
        raise MeasurementError(f"{model}: expected a float32 input, found {entry.type}")
    shape = list(entry.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = 1
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise MeasurementError(
            f"{model}: only the batch dimension may be open, the input is {entry.shape}; "
            "export it with fixed sizes"
        )
    elements = int(np.prod([float(size) for size in shape]))
    if elements > MAX_ELEMENTS:
        raise MeasurementError(
            f"{model}: the input {entry.shape} has {elements:,} elements, more than "
            f"{MAX_ELEMENTS:,}; export it at a smaller size"
        )
    return entry.name, rng.standard_normal(shape, dtype=np.float32)


def _groups(models: Sequence[Path], *, limit: int) -> list[list[Path]]:
    """Files that are held in memory together, in order, of at most ``limit`` bytes or alone."""
    groups: list[list[Path]] = [[]]
    held = 0
    for model in models:
        size = model.stat().st_size if model.is_file() else 0
        if groups[-1] and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(model)
        held += size
    return groups


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


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
