"""One network, several limits, two runtimes: Tailorbird beside what users would do instead.

Everybody gets the same images and the same epochs. Rivals are a pool of files: each network of a
rival in float32 and in int8 as the runtime's own tool makes it, for every runtime. At each limit a
rival is represented by the file that answers the test images best among those within the limit: its
choice sees the test split, ours never does. All files of a runtime take turns with the teacher's.

What is made, trained, asked and measured is kept in the run folder; started again, it continues.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import tailorbird as tb
from peers import Peer
from plain_int8 import as_documented, by_nncf, in_float32
from tailorbird.data.images import ImageData
from tailorbird.device import ONNX, OPENVINO, Runtime
from tailorbird.errors import InfeasibleError, TailorbirdError
from tailorbird.fit.choose import MARGIN
from tailorbird.fit.ledger import Ledger
from tailorbird.graph.serial import load_module, save_module
from tailorbird.graph.trace import trace
from tailorbird.report.terminal import terminal
from tailorbird.search.strategy import Strategy
from tailorbird.train.recipe import Recipe
from tailorbird.train.retrain import Assignment, retrain_all

ORT, OV = "ONNX Runtime", "OpenVINO"
OURS, FLOAT = "tailorbird", "tailorbird, float32"
UNLABELLED, PART = "labels withheld", "part: "
"""Methods: ours, ours in float32 alone, ours without labels, and a part of ours, by its name."""

AS_IT_IS, RETRAINED = "donor as it is", "donor, retrained"

CALIBRATION = 256
SESSIONS = 5

Answers = npt.NDArray[np.uint16]
Prune = Callable[[Callable[[nn.Module], float], float], Peer]
"""(latency of a network in ms, limit in ms) -> a network within it, not trained any further."""


class Search(TypedDict, total=False):
    """How far ours looks, where it is not as by default; see `ModelHouse.fit`."""

    rounds: int
    candidates: int
    contenders: int


@dataclass(frozen=True)
class Entry:
    """A file in the pool.

    Args:
        method: of whom.
        network: which of the method's networks.
        runtime: that runs it.
        precision: that it computes in.
        path: of the file.
    """

    method: str
    network: str
    runtime: str
    precision: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What all have in common, and one seed.

    Args:
        teacher: trained, in eval mode.
        donors: name -> trained network.
        data: labelled, with a test split.
        runtimes: name -> device at one thread.
        shares: runtime's name -> limits as shares of the teacher's float32 latency there.
        options: of the house.
        search: how far ours looks.
        recipe: of all retraining.
        pruners: method -> makes networks within a limit.
        folder: of this seed.
        seed: of everything random.
    """

    teacher: nn.Module
    donors: Mapping[str, nn.Module]
    data: ImageData
    runtimes: Mapping[str, Runtime]
    shares: Mapping[str, Sequence[float]]
    options: tb.HouseOptions
    search: Search
    recipe: Recipe
    pruners: Mapping[str, Prune]
    folder: Path
    seed: int

    @property
    def limits(self) -> list[tuple[str, float]]:
        """(runtime, share) of each limit."""
        return [(runtime, share) for runtime in self.runtimes for share in self.shares[runtime]]

    # ours -----------------------------------------------------------------------------------------

    def targets(self) -> list[tb.Target]:
        """All limits in any precision, and those of ONNX Runtime in float32 alone."""
        found = [
            tb.Target(named(runtime, share), self.runtimes[runtime], {"latency": f"{share}x"})
            for runtime, share in self.limits
        ]
        for share in self.shares[ORT]:
            name, limits = named(ORT, share, alone=True), {"latency": f"{share}x"}
            found.append(tb.Target(name, self.runtimes[ORT], limits, precisions=("float32",)))
        return found

    def house(self, data: ImageData, name: str) -> tb.ModelHouse:
        """Built in ``folder/name``."""
        return tb.ModelHouse.build(
            self.teacher,
            donors=self.donors,
            data=data,
            targets=self.targets(),
            run=self.folder / name,
            options=self.options,
            seed=self.seed,
            progress=terminal(),
        )

    def ours(
        self,
        house: tb.ModelHouse,
        method: str,
        targets: Sequence[tb.Target],
        strategy: Strategy | None = None,
    ) -> tuple[list[Entry], dict[str, dict[str, object]]]:
        """Files of a house's students, and what was measured of them by the target's name."""
        entries: list[Entry] = []
        results: dict[str, dict[str, object]] = {}
        folder = house.folder.path
        for student in house.fit(targets, recipe=self.recipe, strategy=strategy, **self.search):
            result = student.result
            results[result.name] = {
                "met": result.met,
                "measured_ms": result.measured.get("latency_ms"),
                "limit_ms": result.limits.get("latency_ms"),
                "precision": result.precision,
                "what": result.as_is or " | ".join(result.replaced),
                "reason": result.reason,
            }
            if result.onnx:
                runtime = OV if result.onnx.endswith(".xml") else ORT
                path = folder / result.onnx
                entries.append(Entry(method, result.name, runtime, result.precision, path))
        return entries, results

    def ranked(self, house: tb.ModelHouse) -> dict[str, object] | None:
        """How well losses of blocks rank what training made of a house's contenders: weighted by
        stages as in DONNA, each contender left out in turn, and as plain sums.
        """
        candidates = house.candidates(self.recipe)
        trained = Ledger(house.folder.path / "fit" / "trained.json").trained(candidates)
        model = candidates.block_model(trained)
        if model is None:
            return None
        print(model, flush=True)
        return {**asdict(model), "weights": model.weights.tolist()}

    # rivals ---------------------------------------------------------------------------------------

    def rivals(self) -> dict[tuple[str, str], nn.Module]:
        """(method, name) -> network, retrained by the same recipe but for those as they are."""
        fresh = {(RETRAINED, name): donor for name, donor in self.donors.items()}
        fresh |= self._pruned()
        names = {key: slug(*key) for key in fresh}
        home = self.folder / "rivals"
        done = retrain_all(
            [
                Assignment(name=names[key], student=network, checkpoint=home / names[key])
                for key, network in fresh.items()
            ],
            self.teacher,
            self.data,
            recipe=self.recipe,
            seed=self.seed,
            progress=terminal(),
        )
        found = {key: trained.module for key, trained in zip(fresh, done, strict=True)}
        found |= {(AS_IT_IS, name): donor for name, donor in self.donors.items()}
        return {**found, ("teacher as it is", "teacher"): self.teacher}

    def _pruned(self) -> dict[tuple[str, str], nn.Module]:
        """What the pruners make for ONNX Runtime's limits in float32."""
        found: dict[tuple[str, str], nn.Module] = {}
        for method, prune in self.pruners.items():
            for share in self.shares[ORT]:
                network = self._within(method, prune, share)
                if network is not None:
                    found[method, f"{share}x"] = network
        return found

    def _within(self, method: str, prune: Prune, share: float) -> nn.Module | None:
        """A pruner's network for a limit, kept since it was bisected on timings."""
        store, name = self.folder / "pruned", slug(method, f"{share}x")
        if (store / f"{name}.json").exists():
            return load_module(store, name)[0]
        if (store / f"{name}.txt").exists():
            return None
        store.mkdir(parents=True, exist_ok=True)
        base, latency = self._latency()
        try:
            peer = prune(latency, share * base * (1 - MARGIN))
        except InfeasibleError as error:
            print(f"{method} at {share}x: {error}", flush=True)
            (store / f"{name}.txt").write_text(str(error))
            return None
        print(f"{method} at {share}x: {peer.latency_ms:.3f} ms", flush=True)
        save_module(trace(peer.module.cpu(), self.shape).module, store, name, {})
        return load_module(store, name)[0]

    def _latency(self) -> tuple[float, Callable[[nn.Module], float]]:
        """The teacher's in ms, and what measures another network beside it."""
        device = self.runtimes[ORT]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "teacher.onnx"
            in_float32(ONNX, self.teacher, self.shape, path)
            base = device.measure([path])[0].median_ms

        def latency(network: nn.Module) -> float:
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder) / "teacher.onnx", Path(folder) / "network.onnx"]
                for one, path in zip((self.teacher, network), paths, strict=True):
                    in_float32(ONNX, one, self.shape, path)
                reference, own = device.measure(paths)
            return own.median_ms / reference.median_ms * base

        return base, latency

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.data.input_shape
        return channels, height, width

    # files ----------------------------------------------------------------------------------------

    def files(self, networks: Mapping[tuple[str, str], nn.Module]) -> list[Entry]:
        """Each network in float32 and in plain int8 for every runtime; what can't be made is
        said.
        """
        found = []
        for (method, name), network in networks.items():
            for runtime in self.runtimes:
                home = self.folder / "files" / slug(runtime, method, name)
                try:
                    plain, rounded = self._written(network, runtime, home)
                except TailorbirdError as error:
                    print(f"{method} {name} for {runtime}: {error}", flush=True)
                    continue
                found.append(Entry(method, name, runtime, "float32", plain))
                found.append(Entry(f"{method}, int8", name, runtime, "int8", rounded))
        return found

    def _written(self, network: nn.Module, runtime: str, home: Path) -> tuple[Path, Path]:
        what = ONNX if runtime == ORT else OPENVINO
        plain, rounded = home / "float32" / what.file, home / "int8" / what.file
        if not (home / "done").exists():
            for path in (plain, rounded):
                path.parent.mkdir(parents=True, exist_ok=True)
            in_float32(what, network.cpu().eval(), self.shape, plain)
            tool = as_documented if runtime == ORT else by_nncf
            tool(plain, rounded, self.calibration)
            (home / "done").touch()
        return plain, rounded

    @property
    def calibration(self) -> Tensor:
        """Training images, the same for all."""
        return self.data.train.sample(CALIBRATION)

    # figures --------------------------------------------------------------------------------------

    def answers(self, entries: Sequence[Entry]) -> dict[Entry, Answers]:
        """First classes of the test images as each file answers, on its runtime."""
        store = self.folder / "answers"
        store.mkdir(exist_ok=True)
        images = self._test[0].numpy()
        found = {}
        for entry in entries:
            path = store / f"{slug(entry.runtime, entry.method, entry.network)}.npy"
            stale = path.exists() and path.stat().st_mtime < entry.path.stat().st_mtime
            if stale or not path.exists():
                logits = self.runtimes[entry.runtime].run(entry.path, images)
                np.save(path, logits.argmax(1).astype(np.uint16))
            found[entry] = np.load(path)
        return found

    @property
    def labels(self) -> Answers:
        """Of the test images."""
        return np.asarray(self._test[1].numpy().astype(np.uint16))

    @property
    def _test(self) -> tuple[Tensor, Tensor]:
        assert self.data.test is not None
        batches = list(self.data.test.batches(250))
        labels = [label for _, label in batches if label is not None]
        return torch.cat([images for images, _ in batches]), torch.cat(labels)

    def latencies(self, entries: Sequence[Entry], again: bool = False) -> dict[Entry, float]:
        """Share of the teacher's float32 latency, the median of `SESSIONS` sessions."""
        store = self.folder / "latency.json"
        known: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}
        paths = {entry: str(entry.path.relative_to(self.folder)) for entry in entries}
        if again or not known.keys() >= set(paths.values()):
            known = {}
            for runtime, device in self.runtimes.items():
                own = [entry for entry in entries if entry.runtime == runtime]
                base = next(e for e in own if e.method == "teacher as it is")
                sessions = [device.measure([e.path for e in (base, *own)]) for _ in range(SESSIONS)]
                for number, entry in enumerate(own, 1):
                    shares = [s[number].median_ms / s[0].median_ms for s in sessions]
                    known[paths[entry]] = median(shares)
            store.write_text(json.dumps(known, indent=1))
        return {entry: known[path] for entry, path in paths.items()}


def named(runtime: str, share: float, *, alone: bool = False) -> str:
    """A target's name, such as ``ort-0.75``; ``alone``: in float32 alone."""
    return f"{'ort' if runtime == ORT else 'openvino'}-{share}{'-float32' if alone else ''}"


def slug(*words: str) -> str:
    """Words as a file's name."""
    return "-".join(words).replace(" ", "-").replace(",", "").lower()
