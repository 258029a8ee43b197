"""Latency of OpenVINO's files on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailorbird.device import OPENVINO, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.measure import apart
from tailorbird.measure.conditions import this_machine
from tailorbird.measure.interleave import (
    GROUP_BYTES,
    Runner,
    Turns,
    bytes_of,
    made_up,
)
from tailorbird.measure.openvino import (
    CPU,
    capabilities,
    compiled,
    core,
    input_shape,
    openvino,
    read,
    run_openvino,
    weights_of,
)

_WORDS: dict[Precision, str] = {"float32": "FP32", "float16": "FP16", "int8": "INT8"}
"""Precision -> what OpenVINO calls it where it says what a unit is good at."""


@dataclass(frozen=True, kw_only=True)
class OpenVino:
    """Times files of OpenVINO (``NAME.xml``, ``NAME.bin``) on this machine.

    Implements :class:`tailorbird.device.Runtime`. It needs the extra ``openvino``.

    On the CPU each call is timed in a process that has done nothing else
    (`tailorbird.measure.apart`); on other units in this one, whose start would cost more.

    Files take turns, and the calling thread's own clock tells of samples that another process cut
    (`tailorbird.measure.interleave`; on the CPU with one thread, where the calling thread does all
    the work). The input is set beforehand. Reported are the median over rounds of each round's
    median, and the interquartile range over all samples. What a call itself costs from Python
    (about 9 us) is part of the figure. A file with an open batch is run as it is, with one image.

    OpenVINO gets the performance hint LATENCY and one stream. What a file computes in is what it
    says: float32 and float16 are asked for by name, since a CPU with AMX or AVX-512 would take
    bfloat16 for a file in float32. Threads are not pinned to cores.

    Args:
        threads: on the CPU; other units have their own.
        unit: ``CPU``, ``GPU``, ``GPU.1``, ``NPU``: what OpenVINO calls the units of this machine.
        warmup: untimed runs per file at the start.
        runs: timed samples per file.
        seed: of the random normal input.
        seconds: bound on the timing; once spent, rounds end early, but not below 15 samples
            (``Latency.runs`` tells how many were taken).

    Raises:
        ConfigError: listing all wrong arguments, and the units that are there; or saying what to
            install.

    Example:
        >>> OpenVino(threads=1).key
        'openvino ..., CPU (...), 1 thread, precision hint f32...'
    """

    threads: int = 1
    unit: str = CPU
    warmup: int = 10
    runs: int = 100
    seed: int = 0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        problems = self._turns.faults(self.threads, "OpenVino")
        units = core().available_devices
        if self.unit not in units:
            problems.append(
                f"OpenVino: there is no unit {self.unit!r} here; choose one of "
                f"{', '.join(units)}, or install the driver that OpenVINO needs for it"
            )
        elif self.unit != CPU and self.threads != 1:
            problems.append(
                f"OpenVino: threads are of the CPU, got {self.threads} for {self.unit}; "
                "leave them out"
            )
        if problems:
            raise ConfigError(problems)

    @cached_property
    def key(self) -> str:
        """Version of OpenVINO, unit and its name, threads, and what it is told to compute in."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}, "
        hints = [word for word in ("f32", "f16") if f"FP{word[1:]}" in self._able]
        return (
            f"openvino {self._version}, {self.unit} ({self._name}), "
            f"{threads if self.unit == CPU else ''}precision hint {' or '.join(hints)}"
        )

    @classmethod
    def load(cls) -> None:
        """Import OpenVINO."""
        openvino()

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call: what loading and warming up may take beside `seconds`."""
        return self._turns.time_limit_s

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the unit says that it is good at."""
        return tuple(name for name, word in _WORDS.items() if word in self._able)

    @property
    def format(self) -> Format:
        """OpenVINO's own."""
        return OPENVINO

    def measure(self, models: Sequence[Path], *, group_bytes: int = GROUP_BYTES) -> list[Latency]:
        """Time each file; the latencies come in the order of ``models``.

        Args:
            models: files of OpenVINO.
            group_bytes: those that take turns are held in memory together, up to this many bytes
                of files; more are measured group by group.

        Raises:
            MeasurementError: naming every file that can't be run (missing, damaged, more than
                one input, open dimensions besides the batch) and why.
        """
        if self.unit == CPU and type(self) is OpenVino and apart.POSSIBLE:
            return apart.timed(self, models, group_bytes=group_bytes)
        return self.timed(models, group_bytes=group_bytes)

    def timed(self, models: Sequence[Path], *, group_bytes: int = GROUP_BYTES) -> list[Latency]:
        """As `measure`, in the process that asks, whatever it did before."""
        return self._turns.measure(
            models,
            self._runner,
            bytes_of=lambda model: bytes_of(model, weights_of(model)),
            group_bytes=group_bytes,
        )

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers to images (n, C, H, W), on this unit and number of threads.

        Raises:
            ExportError: when it can't be run on these images.
        """
        return run_openvino(artifact, images, unit=self.unit, threads=self.threads)

    def describe(self) -> Description:
        """This machine, and the conditions that it is in now."""
        found = this_machine(f"OpenVINO, {self.unit}", self._version)
        return found if self.unit == CPU else replace(found, machine=self._name)

    @cached_property
    def _able(self) -> frozenset[str]:
        return capabilities(self.unit)

    @cached_property
    def _name(self) -> str:
        return str(core().get_property(self.unit, "FULL_DEVICE_NAME")).strip()

    @property
    def _version(self) -> str:
        return str(openvino().__version__).partition("-")[0]

    @property
    def _turns(self) -> Turns:
        return Turns(warmup=self.warmup, runs=self.runs, seed=self.seed, seconds=self.seconds)

    def _runner(self, model: Path) -> Runner:
        """Load one file and run it once.

        Raises:
            MeasurementError: naming the file and the cause.
        """
        network = read(model)
        image = made_up(model, input_shape(model, network), self.seed)
        request = compiled(
            model, network, unit=self.unit, threads=self.threads
        ).create_infer_request()
        try:
            request.set_input_tensor(openvino().Tensor(image))
            request.infer()
        except RuntimeError as error:
            raise MeasurementError(f"{model}: {self.unit} can't run it: {error}") from error
        alone = self.unit == CPU and self.threads == 1
        return Runner(partial(request.infer, share_outputs=True), alone=alone, holds=image)
