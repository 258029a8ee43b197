"""Latency of ONNX files with ONNX Runtime on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tailorbird.device import ONNX, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.measure import apart
from tailorbird.measure.answering import run_onnx
from tailorbird.measure.conditions import processor, this_machine
from tailorbird.measure.interleave import (
    GROUP_BYTES,
    Runner,
    Turns,
    bytes_of,
    first_line,
    made_up,
)
from tailorbird.measure.sizes import check_sizes

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PRECISIONS: dict[str, tuple[Precision, ...]] = {
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
    """Times ONNX files on this machine, at batch 1 where it is open.

    Implements :class:`tailorbird.device.Runtime`.

    On the CPU each call is timed in a process that has done nothing else
    (`tailorbird.measure.apart`); with other providers in this one, whose start would cost more.

    Files take turns, and the calling thread's own clock tells of samples that another process cut
    (`tailorbird.measure.interleave`; on the CPU with one thread). Inputs and outputs are bound
    beforehand (this saves about 1.5 us a run against passing arrays). Reported are the median over
    rounds of each round's median, and the interquartile range over all samples. What a call itself
    costs (some microseconds) is part of the figure, as it is for whoever deploys the file.
    Latencies of one call compare to within about half a percent; between calls a processor's clock
    may drift by some percent, so measure what is to be compared (a student and its teacher) in one
    call.

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
        problems = self._turns.faults(self.threads, "OnnxRuntime")
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
        if self._apart:
            return apart.timed(self, models, group_bytes=group_bytes)
        return self.timed(models, group_bytes=group_bytes)

    def timed(self, models: Sequence[Path], *, group_bytes: int = GROUP_BYTES) -> list[Latency]:
        """As `measure`, in the process that asks, whatever it did before."""
        return self._turns.measure(models, self._runner, bytes_of=bytes_of, group_bytes=group_bytes)

    @classmethod
    def load(cls) -> None:
        """Import ONNX Runtime."""
        import onnxruntime  # noqa: F401  # for its own sake

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what loading and warming up may take beside `seconds`."""
        return self._turns.time_limit_s

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """float16 where the provider computes in it; int8 where it has kernels for it."""
        return PRECISIONS.get(self.provider, ("float32",))

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

    @property
    def _apart(self) -> bool:
        """Whether files are timed in a process of their own; a subclass may not be importable."""
        cpu = self.provider == "CPUExecutionProvider"
        return cpu and type(self) is OnnxRuntime and apart.POSSIBLE

    @property
    def _alone(self) -> bool:
        """Whether the calling thread does all the work."""
        return self.threads == 1 and self.provider == "CPUExecutionProvider"

    @property
    def _turns(self) -> Turns:
        return Turns(warmup=self.warmup, runs=self.runs, seed=self.seed, seconds=self.seconds)

    def _runner(self, model: Path) -> Runner:
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
                f"{model}: {self.provider} can't load it: {first_line(error)}; export it again"
            ) from error
        if self.provider not in session.get_providers():
            raise MeasurementError(
                f"{model}: {self.provider} did not start (its libraries may be missing), only "
                f"{', '.join(session.get_providers())} did; choose one of those"
            )
        name, image = _input(model, session, self.seed)
        try:
            return _bound(session, name, image, alone=self._alone)
        except Exception as error:
            raise MeasurementError(
                f"{model}: {self.provider} can't run it: {first_line(error)}"
            ) from error


def _bound(
    session: InferenceSession, name: str, image: npt.NDArray[np.float32], *, alone: bool
) -> Runner:
    """A session with its input and outputs bound; the first run happens here."""
    from onnxruntime import OrtValue

    outputs = [output.name for output in session.get_outputs()]
    results = session.run(outputs, {name: image})
    binding = session.io_binding()
    held = [OrtValue.ortvalue_from_numpy(array) for array in (image, *results)]
    binding.bind_ortvalue_input(name, held[0])
    for output, value in zip(outputs, held[1:], strict=True):
        binding.bind_ortvalue_output(output, value)
    return Runner(partial(session.run_with_iobinding, binding), alone=alone, holds=held)


def _input(
    model: Path, session: InferenceSession, seed: int
) -> tuple[str, npt.NDArray[np.float32]]:
    """Name and random value of the one input."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise MeasurementError(f"{model}: expected one input, found {len(inputs)}")
    (entry,) = inputs
    if entry.type != "tensor(float)":
        raise MeasurementError(f"{model}: expected a float32 input, found {entry.type}")
    return entry.name, made_up(model, entry.shape, seed)
