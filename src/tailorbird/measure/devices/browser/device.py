"""Latency of ONNX files in a browser, on whatever machine opens the page."""

from __future__ import annotations

import ssl
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tailorbird.device import ONNX, Description, Format, Latency, Precision
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.measure.conditions import processor
from tailorbird.measure.devices.browser.address import is_loopback, qr_code, url_of
from tailorbird.measure.devices.browser.desk import Desk, Hello, Work
from tailorbird.measure.devices.browser.files import input_shape
from tailorbird.measure.devices.browser.package import ENTRIES, Package, find_package
from tailorbird.measure.devices.browser.server import Server
from tailorbird.measure.guarded import LEAST_MS, MOST_MS
from tailorbird.measure.interleave import BURST, LEAST_RUNS
from tailorbird.measure.rounds import steady, summary
from tailorbird.quiet import terminal
from tailorbird.records import as_record

Provider = Literal["wasm", "webgpu"]

SAMPLE_MS = 0.5
"""A timed sample lasts at least so long, and a hundred steps of the browser's clock."""

OPEN_BATCH = 64
"""Images at once where a file leaves it open, unless they are large."""

CHUNK_BYTES = 8_000_000
"""Images are sent in parts of about so many bytes."""

GROUP_BYTES = 400_000_000
"""Files of more bytes together than this are measured in groups."""

MOST_RUNS, MOST_THREADS, MOST_PORT, MOST_IMAGES = 10_000, 64, 65_535, 1_000_000
_LOADING_S = 3600.0
_PAGE = Path(__file__).parent / "page"
_PAGES = ("index.html", "style.css", "page.js", "worker.js")
_PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "wasm": ("float32", "int8"),
    "webgpu": ("float32", "float16"),
}
_MEMORY = ("memory", "bad_alloc", "allocat", "integer overflow", "array buffer length")
"""What onnxruntime-web and browsers say where something does not fit into memory."""

_THREADS_WAY_OUT = (
    "a page has it under https or localhost only: give certificate and certificate_key, forward "
    "the port so that the device finds the page under localhost, or take threads: 1"
)


_OPENING = threading.Lock()
"""A device that two threads use first at the same time is served once."""


@dataclass(frozen=True)
class _Served:
    desk: Desk
    url: str
    ends: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Browser:
    """Times ONNX files by onnxruntime-web, in a page that any phone or laptop may open.

    Implements :class:`tailorbird.device.Runtime`.

    A page is served when the device is first used. Its address, with a token that is new each
    time, goes to the error stream, with a QR code where others may reach it; whatever opens it and
    keeps it in front is the device. The page may be closed and opened again: what was under way
    begins anew. It works in a worker of its own for each piece of work, so that memory is free
    again after it.

    Files take turns as with `OnnxRuntime`: all are warmed up, then measured in an order shuffled
    every round, one untimed and five timed samples each. A browser translates what runs often a
    second time, so a file is warmed up until it gets no faster. Browsers' clocks are coarse (5 us
    to 1 ms), so a sample is as many runs as take half a millisecond and a hundred steps of the
    clock.

    Args:
        label: names the device, in reports and in ``key``: two phones are two devices. Without it
            a page on loopback is taken to be in a browser of this machine.
        host: address to listen on; ``0.0.0.0`` for all, so that others on the network reach it.
        port: 0 for any that is free.
        threads: of WebAssembly. More than 1 need SharedArrayBuffer, which browsers give to pages
            under https or localhost only.
        provider: ``wasm``, the processor, or ``webgpu``, under https or localhost only.
        package: folder of onnxruntime-web; looked for in ``node_modules`` of the current folder
            and those above it, and where npm installs for all, where ``None``.
        certificate: PEM file of the certificate chain, for https.
        certificate_key: PEM file of its private key.
        warmup: untimed runs per file at the start.
        runs: timed samples per file.
        seed: of the random normal input and of the order.
        seconds: bound on the timing, as with `OnnxRuntime`.
        images: of a split at most, on which files are judged there: they are sent to the page.
        wait_s: seconds to wait for a page, at the start and when it goes away.

    Raises:
        ConfigError: listing all wrong arguments; or what to install.

    Example:
        >>> Browser(threads=0, port=70000)
        Traceback (most recent call last):
        ...
        tailorbird.errors.ConfigError: 2 problems:
          - Browser: port must be 0 to 65535, got 70000
          - Browser: threads must be 1 to 64, got 0
    """

    label: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    provider: Provider = "wasm"
    package: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    warmup: int = 10
    runs: int = 100
    seed: int = 0
    seconds: float = 300.0
    images: int = 1000
    wait_s: float = 300.0

    def __post_init__(self) -> None:
        problems = [
            f"Browser: {name} must be {least} to {most}, got {value}"
            for name, value, least, most in (
                ("port", self.port, 0, MOST_PORT),
                ("threads", self.threads, 1, MOST_THREADS),
                ("warmup", self.warmup, 0, MOST_RUNS),
                ("runs", self.runs, 1, MOST_RUNS),
                ("images", self.images, 1, MOST_IMAGES),
            )
            if not least <= value <= most
        ]
        for name, seconds in (("seconds", self.seconds), ("wait_s", self.wait_s)):
            if not (seconds > 0 and isfinite(seconds)):
                problems.append(f"Browser: {name} must be positive, got {seconds}")
        if not self.host or not self.host.isprintable() or " " in self.host:
            problems.append(f"Browser: host must be an address or a name, got {self.host!r}")
        if not self.label.isprintable() or len(self.label) > 100:
            problems.append(
                f"Browser: label must be at most 100 printable characters, got {self.label!r:.120}"
            )
        problems += self._tls_problems()
        if self.provider not in get_args(Provider):
            problems.append(
                f"Browser: provider must be one of {', '.join(ENTRIES)}, got {self.provider!r}"
            )
        elif not problems:
            _ = self._package
        if problems:
            raise ConfigError(problems)

    def _tls_problems(self) -> list[str]:
        given = {"certificate": self.certificate, "certificate_key": self.certificate_key}
        missing = [name for name, path in given.items() if path is None]
        if len(missing) == 1:
            (other,) = given.keys() - set(missing)
            return [f"Browser: {other} is given without {missing[0]}; https needs both"]
        return [
            f"Browser: {name}: there is no file {path}"
            for name, path in given.items()
            if path is not None and not path.expanduser().is_file()
        ]

    @cached_property
    def _package(self) -> Package:
        return find_package(self.package, provider=self.provider)

    @cached_property
    def key(self) -> str:
        """Runtime, its version, provider, threads, and label or processor."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        version = self._package.version
        return f"browser, onnxruntime-web {version}, {self.provider}, {threads}, {self._name}"

    @property
    def _name(self) -> str:
        return self.label or (processor() if is_loopback(self.host) else "any device")

    @property
    def time_limit_s(self) -> float:
        """Seconds for one call, with a page that goes away a few times."""
        return 4 * (self.seconds + self.wait_s) + 2 * _LOADING_S

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the provider runs."""
        return _PRECISIONS[self.provider]

    @property
    def format(self) -> Format:
        """ONNX files."""
        return ONNX

    # the page ------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The page's address; the page is served from now on.

        Raises:
            MeasurementError: when it can't be.
        """
        return self._served.url

    def close(self) -> None:
        """Stop serving, until it is used again; it ends with the process, or with this object."""
        with _OPENING:
            served = self.__dict__.pop("_serving", None)
        if served is not None:
            served.ends()

    @property
    def _served(self) -> _Served:
        with _OPENING:
            return self._serving

    @cached_property
    def _serving(self) -> _Served:
        desk = Desk()
        pages = {name: _PAGE / name for name in _PAGES}
        pages |= {f"ort/{name}": path for name, path in self._package.served.items()}
        tls = self._tls()
        server = Server(desk, pages, host=self.host, port=self.port, tls=tls)
        url = url_of(self.host, server.port, server.token, secure=tls is not None)
        code = "" if is_loopback(self.host) else qr_code(url)
        named = f" {self.label}" if self.label else ""
        stream = terminal()
        stream.write(f"browser device{named}: open this page there and keep it in front\n  {url}\n")
        stream.write(code)
        stream.flush()
        return _Served(desk, url, weakref.finalize(self, server.close))

    def _tls(self) -> ssl.SSLContext | None:
        if self.certificate is None or self.certificate_key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(
                self.certificate.expanduser(),
                self.certificate_key.expanduser(),
                password=lambda: b"",  # never asked for at the terminal
            )
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise MeasurementError(
                f"browser device: certificate {self.certificate} and its key can't be used: "
                f"{error}; give PEM files, the key without a password"
            ) from error
        return context

    @property
    def _way_out(self) -> str:
        return f"open {self.url} on the device, keep the page in front, and run this again"

    def _hello(self) -> Hello:
        hello = self._served.desk.page(wait_s=self.wait_s, way_out=self._way_out)
        if self.threads > 1 and not hello.isolated:
            raise MeasurementError(
                f"browser device: {self.threads} threads need SharedArrayBuffer, which "
                f"{_plain(hello.agent)} does not give this page; {_THREADS_WAY_OUT}"
            )
        return hello

    def _ask(self, work: Work) -> tuple[Mapping[str, Any], Mapping[int, npt.NDArray[np.float32]]]:
        self._hello()
        limit_s = self.seconds + self.wait_s + _LOADING_S
        return self._served.desk.ask(
            work, wait_s=self.wait_s, limit_s=limit_s, way_out=self._way_out
        )

    def describe(self) -> Description:
        """What the page says of its browser.

        Raises:
            MeasurementError: when no page is opened in time.
        """
        hello = self._hello()
        memory = f", about {hello.memory_gb:g} GB" if hello.memory_gb else ""
        without = "" if hello.isolated else ", without SharedArrayBuffer"
        return Description(
            machine=", ".join(filter(None, [self.label, _plain(hello.machine)])) + memory,
            system=_plain(hello.agent) + without,
            runtime=f"onnxruntime-web {self.provider}",
            version=self._package.version,
            cores=hello.cores,
        )

    # measuring -----------------------------------------------------------------------------------

    def measure(self, models: Sequence[Path], *, group_bytes: int = GROUP_BYTES) -> list[Latency]:
        """Time each file; the latencies come in the order of ``models``.

        Args:
            models: ONNX files, each whole in itself.
            group_bytes: those that take turns are held in the page's memory together, up to this
                many bytes of files; more are measured group by group.

        Raises:
            MeasurementError: naming every file that can't be run and why; when no page is opened,
                or does not answer as it should.
        """
        shapes, faults = [], []
        for model in models:
            try:
                shapes.append(tuple(size or 1 for size in input_shape(model)))
            except MeasurementError as error:
                faults.append(str(error))
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise MeasurementError("; ".join(faults[:5]) + more)
        groups = _groups(models, limit=group_bytes)
        seconds = self.seconds / max(len(groups), 1)
        return [
            latency
            for group in groups
            for latency in steady(
                partial(self._together, models[group], shapes[group], seconds=seconds)
            )
        ]

    def _together(
        self, models: Sequence[Path], shapes: Sequence[tuple[int, ...]], *, seconds: float
    ) -> list[Latency]:
        rng = np.random.default_rng(self.seed)
        inputs = tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
        whole, rest = divmod(self.runs, BURST)
        bursts = [BURST] * whole + [rest] * (rest > 0)
        turns = [rng.permutation(len(models)).tolist() for _ in bursts]
        title = f"browser device: measure of {len(models)} files"
        task = {
            "warmup": self.warmup,
            "bursts": bursts,
            "turns": turns,
            "least": LEAST_RUNS,
            "seconds": seconds,
            "sample_ms": SAMPLE_MS,
        }
        work = Work(
            title=title,
            task=self._task("measure", models, inputs) | task,
            files=tuple(models),
            inputs=inputs,
        )
        answer, _ = self._ask(work)
        if fault := _fault(answer, models):
            raise MeasurementError(f"{title}: {fault}")
        rounds = _rounds(answer.get("rounds_ms"), len(models), bursts)
        if rounds is None:
            raise MeasurementError(f"{title}: the page did not answer with times as it was asked")
        return [summary(one, warmup=self.warmup) for one in rounds]

    def run(self, artifact: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What a file answers to images (n, C, H, W) in the browser.

        Raises:
            ExportError: when it can't be run on these images.
            MeasurementError: when no page is opened, or does not answer as it should.
        """
        title = f"browser device: run of {artifact.name} on {len(images)} images"
        try:
            shape = input_shape(artifact)
        except MeasurementError as error:
            raise ExportError(f"{title}: {error}") from error
        if len(images) == 0 or images.shape[1:] != shape[1:]:
            raise ExportError(
                f"{title}: expected one or more images of shape {shape[1:]}, got {images.shape}"
            )
        few = min(OPEN_BATCH, max(1, CHUNK_BYTES // images[:1].nbytes))
        batch = shape[0] or few
        chunks = _chunks(images.astype(np.float32), batch, fixed=shape[0] is not None)
        work = Work(
            title=title,
            task=self._task("run", [artifact], chunks) | {"batch": batch},
            files=(artifact,),
            inputs=chunks,
        )
        answer, outputs = self._ask(work)
        if fault := _fault(answer, [artifact]):
            raise ExportError(f"{title}: {fault}")
        found = [outputs.get(number) for number in range(len(chunks))]
        rows = [one.shape[:1] for one in found if one is not None]
        rest = {one.shape[1:] for one in found if one is not None}
        if rows != [chunk.shape[:1] for chunk in chunks] or len(rest) != 1:
            raise MeasurementError(f"{title}: the page did not answer with a row for each image")
        return np.concatenate([one for one in found if one is not None])[: len(images)]

    def _task(
        self, kind: str, files: Sequence[Path], inputs: Sequence[npt.NDArray[np.float32]]
    ) -> dict[str, object]:
        return {
            "kind": kind,
            "module": ENTRIES[self.provider],
            "provider": self.provider,
            "threads": self.threads,
            "files": [file.name for file in files],
            "inputs": [list(one.shape) for one in inputs],
        }


def _chunks(
    images: npt.NDArray[np.float32], batch: int, *, fixed: bool
) -> tuple[npt.NDArray[np.float32], ...]:
    """Images in parts of some megabytes; the last is filled up where the batch is fixed.

    Example:
        >>> images = np.zeros((5, 1, 1000, 1000), np.float32)
        >>> [len(part) for part in _chunks(images, 2, fixed=True)]
        [2, 2, 2]
        >>> [len(part) for part in _chunks(images[..., :9], 2, fixed=False)]
        [5]
    """
    step = batch * max(1, CHUNK_BYTES // (images[0].nbytes * batch))
    if fixed:
        images = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
    return tuple(images[start : start + step] for start in range(0, len(images), step))


def _groups(models: Sequence[Path], *, limit: int) -> list[slice]:
    """Runs of files that are held in memory together, of at most ``limit`` bytes or alone."""
    groups: list[slice] = []
    begin, held = 0, 0
    for number, model in enumerate(models):
        size = model.stat().st_size
        if number > begin and held + size > limit:
            groups.append(slice(begin, number))
            begin, held = number, 0
        held += size
    return [*groups, slice(begin, len(models))] if models else []


def _fault(answer: Mapping[str, Any], models: Sequence[Path]) -> str | None:
    """What a page says went wrong there."""
    said = as_record(dict[str, str | int], answer.get("fault"))
    if said is None:
        return None
    number, words = said.get("file"), _plain(str(said.get("text", "")))
    known = isinstance(number, int) and 0 <= number < len(models)
    named = f"{models[int(number or 0)].name}: " if known else ""
    if any(word in words.lower() for word in _MEMORY):
        words += "; the browser's memory is too small for it, choose a smaller network or input"
    return f"{named}onnxruntime-web can't run it: {words}"


def _rounds(given: object, models: int, bursts: Sequence[int]) -> list[list[list[float]]] | None:
    """Times in ms as [model][round][run], where they are what was asked for."""
    found = as_record(list[list[list[float]]], given)
    if found is None or len(found) != models:
        return None
    done = {len(rounds) for rounds in found}
    least = min(LEAST_RUNS, sum(bursts))
    for rounds in found:
        sizes = [len(one) for one in rounds]
        if len(done) != 1 or sizes != list(bursts[: len(sizes)]) or sum(sizes) < least:
            return None
        if not all(LEAST_MS < time < MOST_MS for one in rounds for time in one):
            return None
    return found


def _plain(text: str) -> str:
    """What a page says, in one printable line."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line[:300].strip() or "nothing"
