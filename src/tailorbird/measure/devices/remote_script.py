"""What runs on a device that is reached over ssh: times files, or tells what they answer.

It needs Python 3.8 or later, numpy, and ONNX Runtime or OpenVINO; nothing of Tailorbird. It is
copied into a fresh folder beside the files that it works on, and started once per request:

- standard input: the request as one line of JSON, then, for ``run``, images as raw float32. It
  stays open; when it closes early, whoever asked is gone, and the folder is removed.
- standard output: one line, a word that the request chose and the answer as JSON; for ``run``,
  outputs as raw float32 behind it. All else that is printed goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:  # older Pythons know these types in annotations only
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

    Request = dict[str, Any]
    Answer = dict[str, Any]
    Images = npt.NDArray[np.float32]

OLDEST = {"onnxruntime": (1, 18), "openvino": (2024, 0)}
BURST, LEAST_RUNS = 5, 15
SAMPLE_NS, ATTEMPTS = 100_000, 4
MOST_ELEMENTS = 100_000_000
BLOCK_BYTES = 1 << 20
FOLDER = Path(__file__).resolve().parent
SILENT = {"ORT_DISABLE_TELEMETRY": "1"}
"""What keeps runtimes from reporting their use to their makers."""


class Refused(Exception):  # noqa: N818  # an answer, not a fault of the script
    """What can't be done here, as it is told to whoever asked."""

    def __init__(self, kind: str, **told: object) -> None:
        super().__init__(kind)
        self.answer = {"error": kind, **told}


# runtimes ---------------------------------------------------------------------------------------


class Loaded(Protocol):
    """A file that its runtime has taken; an open batch in its shape is ``None``."""

    shape: list[Any]

    def bound(self, image: Images) -> Callable[[], object]:
        """What runs it once on an image, with all that can be done beforehand done."""

    def answer(self, images: Images) -> Images:
        """Its first output for a batch."""


class OrtFile:
    """A file in ONNX Runtime."""

    def __init__(self, path: Path, request: Request) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        if request["threads"] > 1:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        provider = request["provider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        self._session.disable_fallback()
        if provider not in self._session.get_providers():
            raise ValueError(f"{provider} did not start, its libraries may be missing")
        inputs = self._session.get_inputs()
        self.name, self.shape = one_input([(one.name, one.shape, one.type) for one in inputs])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def bound(self, image: Images) -> Callable[[], object]:
        """What runs it once, with input and outputs bound beforehand."""
        from onnxruntime import OrtValue

        results = self._session.run(self._outputs, {self.name: image})
        binding = self._session.io_binding()
        held = [OrtValue.ortvalue_from_numpy(array) for array in [image, *results]]
        binding.bind_ortvalue_input(self.name, held[0])
        for index, output in enumerate(self._outputs):
            binding.bind_ortvalue_output(output, held[index + 1])
        run = self._session.run_with_iobinding
        return lambda held=held: run(binding)  # type: ignore[misc]  # what is bound has to stay

    def answer(self, images: Images) -> Images:
        """Its first output for a batch."""
        outputs: list[Images] = self._session.run(None, {self.name: images})
        return outputs[0]


class VinoFile:
    """A file in OpenVINO."""

    def __init__(self, path: Path, request: Request) -> None:
        import openvino

        core = openvino.Core()
        network = core.read_model(str(path))
        inputs = [(one.get_partial_shape(), one.get_element_type()) for one in network.inputs]
        told = {"f32": "tensor(float)"}  # ONNX Runtime's word
        _, self.shape = one_input(
            [
                (
                    "image",
                    [None if size.is_dynamic else size.get_length() for size in shape],
                    told.get(kind.get_type_name(), kind.get_type_name()),
                )
                for shape, kind in inputs
            ]
        )
        if self.shape[0] is None and request["do"] == "measure":
            network.reshape([1, *self.shape[1:]])
        unit = request["provider"]
        able = core.get_property(unit, "OPTIMIZATION_CAPABILITIES")
        half = "FP16" in able and any(
            one.get_type_name() == "Constant"
            and one.get_output_element_type(0).get_type_name() == "f16"
            for one in network.get_ops()
        )
        settings = {  # a processor that has bfloat16 would take it for float32
            "INFERENCE_PRECISION_HINT": "f16" if half or "FP32" not in able else "f32",
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if unit == "CPU":
            settings["INFERENCE_NUM_THREADS"] = request["threads"]
        compiled = core.compile_model(network, unit, settings)
        self._request = compiled.create_infer_request()

    def bound(self, image: Images) -> Callable[[], object]:
        """What runs it once, with its input set beforehand."""
        import openvino

        self._request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
        self._held = image
        self._request.infer()
        return self._request.infer  # type: ignore[no-any-return]  # it has no types here

    def answer(self, images: Images) -> Images:
        """Its first output for a batch."""
        self._request.infer([images])
        found: Images = self._request.get_output_tensor(0).data
        return found.copy()


RUNTIMES: dict[str, Callable[[Path, Request], Loaded]] = {
    "onnxruntime": OrtFile,
    "openvino": VinoFile,
}


def one_input(inputs: Sequence[tuple[str, Sequence[object], str]]) -> tuple[str, list[Any]]:
    """Name and shape of the one input of float32; only the batch may be open, as ``None``."""
    if len(inputs) != 1:
        raise ValueError(f"expected one input, found {len(inputs)}")
    name, shape, kind = inputs[0]
    if kind != "tensor(float)":
        raise ValueError(f"expected a float32 input, found {kind}")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in shape]
    if None in sizes[1:]:
        raise ValueError(f"only the batch dimension may be open, the input is {list(shape)}")
    elements = 1
    for size in sizes:
        elements *= size or 1
    if elements > MOST_ELEMENTS:
        raise ValueError(f"the input {list(shape)} has more than {MOST_ELEMENTS:,} elements")
    return name, sizes


def started(request: Request) -> str:
    """The runtime's version; it has to be here and new enough, and have the provider."""
    name = request["runtime"]
    try:
        runtime = runtime_module(name)
    except ImportError as error:
        raise Refused("no runtime", text=short(error)) from error
    version = str(runtime.__version__)
    digits = ["".join(filter(str.isdigit, part)) for part in version.split(".")[:2]]
    if tuple(int(part or 0) for part in digits) < OLDEST[name]:
        raise Refused("old runtime", version=version, least=".".join(map(str, OLDEST[name])))
    if name == "onnxruntime":
        have = list(runtime.get_available_providers())
        if request["provider"] not in have:
            raise Refused("no provider", have=have)
    return version


def runtime_module(name: str) -> ModuleType:
    """The runtime, imported."""
    if name == "openvino":
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it can't be imported
        import openvino

        return openvino  # type: ignore[no-any-return]  # where it is not installed
    import onnxruntime

    return onnxruntime  # type: ignore[no-any-return]  # as above


def loaded(request: Request) -> list[Loaded]:
    """All files of a request; all that can't be loaded are told at once."""
    kind = RUNTIMES[request["runtime"]]
    found: list[Loaded] = []
    faults = []
    for index, name in enumerate(request["files"]):
        try:
            found.append(kind(FOLDER / name, request))
        except MemoryError:
            raise Refused("memory", file=index, memory_mb=free_mb()) from None
        except Exception as error:  # the runtimes' exceptions share no base class
            faults.append([index, short(error)])
    if faults:
        raise Refused("files", faults=faults)
    return found


# timing -----------------------------------------------------------------------------------------


class Timed:
    """A file that is timed in samples of one or more runs."""

    def __init__(self, run: Callable[[], object], *, alone: bool) -> None:
        self._run, self._attempts, self._repeats = run, ATTEMPTS if alone else 1, 1

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
        best, least = 0, -1
        for _ in range(self._attempts):
            wall, away = self._attempt()
            if least < 0 or away < least:
                best, least = wall, away
            if least < 0.02 * best + 5000:
                break
        return best

    def _attempt(self) -> tuple[int, int]:
        """Wall time of one sample, and how much of it this thread did not run, both in ns."""
        run, clock, own_clock = self._run, time.perf_counter_ns, time.thread_time_ns
        own, start = own_clock(), clock()
        for _ in range(self._repeats):
            run()
        wall = clock() - start
        return wall, max(0, wall - (own_clock() - own))


def measure(request: Request) -> Answer:
    """Samples in ms as [file][round][run]: files take turns in an order shuffled every round."""
    import numpy as np

    rng = np.random.default_rng(request["seed"])
    alone = request["threads"] == 1 and request["provider"].startswith("CPU")
    timed, faults = [], []
    for index, one in enumerate(loaded(request)):
        shape = [size or 1 for size in one.shape]
        try:
            run = one.bound(rng.standard_normal(shape, dtype=np.float32))
        except MemoryError:
            raise Refused("memory", file=index, memory_mb=free_mb()) from None
        except Exception as error:
            faults.append([index, short(error)])
        else:
            timed.append(Timed(run, alone=alone))
    if faults:
        raise Refused("files", faults=faults)
    gc.collect()
    gc.disable()
    for each in timed:
        each.warm_up(request["warmup"])
    samples: list[list[list[float]]] = [[] for _ in timed]
    until, done = time.perf_counter() + request["seconds"], 0
    while done < request["runs"]:
        burst = min(BURST, request["runs"] - done)
        for index in rng.permutation(len(timed)):
            samples[index].append(timed[index].burst(burst))
        done += burst
        if time.perf_counter() > until and done >= LEAST_RUNS:
            break
    return {"samples": samples}


# answers ----------------------------------------------------------------------------------------


def answers(request: Request, stream: IO[bytes]) -> Iterator[Images]:
    """Outputs of the one file for images from a stream, batch by batch."""
    import numpy as np

    (one,) = loaded(request)
    count, *shape = request["images"]
    batch = one.shape[0] or min(count, 64)
    size = 4
    for length in shape:
        size *= length
    for start in range(0, count, batch):
        rows = min(batch, count - start)
        images = np.frombuffer(exactly(stream, rows * size), "<f4").reshape([rows, *shape])
        if rows < batch and one.shape[0]:  # a file of a fixed batch takes whole ones
            images = np.concatenate([images, np.repeat(images[-1:], batch - rows, axis=0)])
        try:
            found = one.answer(np.ascontiguousarray(images, dtype=np.float32))[:rows]
        except MemoryError:
            raise Refused("memory", file=0, memory_mb=free_mb()) from None
        except Exception as error:
            raise Refused("files", faults=[[0, short(error)]]) from error
        yield np.ascontiguousarray(found, dtype="<f4")


def exactly(stream: IO[bytes], size: int) -> bytes:
    """So many bytes of a stream; one that ends before means that whoever asked is gone."""
    parts, left = [], size
    while left:
        part = stream.read(min(left, BLOCK_BYTES))
        if not part:
            leave()
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


# the device -------------------------------------------------------------------------------------


def describe(request: Request) -> Answer:
    """What this device is, and the conditions it is in."""
    able = getattr(os, "sched_getaffinity", None)
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "machine": machine(),
        "system": system(),
        "runtime": {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[request["runtime"]],
        "version": started(request).partition("-")[0],
        "cores": len(able(0)) if able else os.cpu_count(),
        "memory_mb": free_mb(),
        "governor": governor.strip() or None,
        "temperature_c": hottest(),
    }


def machine() -> str:
    """The board's model, else the processor's name."""
    board = read("/proc/device-tree/model").strip("\0\n ")
    named = [
        line.partition(":")[2].strip()
        for line in read("/proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    return board or (named or [platform.processor()])[0] or platform.machine()


def system() -> str:
    """The operating system and its version."""
    for line in read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return f"{platform.system()} {platform.release()}".strip()


def free_mb() -> float | None:
    """Memory that can be had, in MB, where the system tells."""
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def hottest() -> float | None:
    """The highest temperature that can be read, in degrees Celsius."""
    found = []
    for path in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        text = read(str(path)).strip()
        if text.lstrip("-").isdigit():
            found.append(int(text) / 1000)
    likely = [one for one in found if 0 < one < 150]
    return max(likely) if likely else None


def read(path: str) -> str:
    """A file's text; nothing where it can't be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# the process ------------------------------------------------------------------------------------


def leave() -> NoReturn:
    """Remove the folder and end, whatever else goes on."""
    if FOLDER.name.startswith("tailorbird-device-"):
        shutil.rmtree(str(FOLDER), ignore_errors=True)
    os._exit(3)


def guard(limit_s: float) -> None:
    """End by itself after a time, also where the interpreter hangs in a runtime's own code."""
    timer = threading.Timer(limit_s, leave)
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(limit_s) + 30)


def watch() -> None:
    """End when whoever asked is gone."""

    def until_closed() -> None:
        while os.read(0, 4096):
            pass
        leave()

    threading.Thread(target=until_closed, daemon=True).start()


def short(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def main() -> None:
    """Answer one request."""
    words = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    asked = sys.stdin.buffer
    line = asked.readline()
    if not line.endswith(b"\n"):
        leave()
    request = json.loads(line.decode())
    guard(request["limit_s"])
    os.environ.update(SILENT)

    def tell(answer: Answer) -> None:
        text = json.dumps(answer, allow_nan=False)
        words.write(f"\n{request['word']} {text}\n".encode())
        words.flush()

    try:
        started(request)
        if request["do"] == "run":
            first = True
            for found in answers(request, asked):
                if first:
                    tell({"shape": list(found.shape[1:])})
                first = False
                words.write(found.tobytes())
        else:
            watch()
            tell({"measure": measure, "describe": describe}[request["do"]](request))
    except Refused as refused:
        tell(refused.answer)
    except MemoryError:
        tell({"error": "memory", "file": None, "memory_mb": free_mb()})
    except BrokenPipeError:
        leave()
    words.flush()
    os._exit(0)  # without the runtimes' own ends


if __name__ == "__main__":
    main()
