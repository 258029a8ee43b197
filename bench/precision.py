"""int8 on ONNX Runtime and OpenVINO: float32, plain post-training quantisation, and ours.

    python bench/precision.py --data ../shared/data                  # all of it, about 3 hours
    python bench/precision.py --data ../shared/data --quick          # some minutes, tells nothing
    python bench/precision.py --data ../shared/data --accuracy       # all but the latencies
    python bench/precision.py --data ../shared/data --again latency  # times the files once more

Networks: the CIFAR-10 ResNets with published weights (accuracy on the 10,000 test images), the
EfficientNet-Lite0 and Lite2 with published weights (of the extra ``bench``; 1,000 classes; how
often the first class is float32's, on flower photographs at 224 pixels), and a small vision
transformer that is trained here on CIFAR-10 for some minutes: its accuracy is low, what counts is
what int8 costs it.

Ways, for each runtime:

- ``float32``.
- ``default``: what the runtime's own tool does when it is given images and nothing else, after its
  pre-processing. ``onnxruntime.quantization.quantize_static`` (signed activations, one scale per
  tensor) and ``nncf.quantize``.
- ``documented`` (ONNX Runtime): unsigned activations and one scale per channel, as its
  documentation advises for x86.
- ``ours``: `tailorbird.export.exporters.exporter_for`, judged on images that nothing else uses,
  with at most half a point lost.

All get the same calibration images. Accuracy is of the files, run on the runtime. Latency is of one
image on one thread; files of one runtime take turns, and the two runtimes' sessions alternate. What
is made is kept in ``--run``; started again, it continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_resnet import DEPTHS, trained
from efficientnet_lite import lite
from plain_int8 import as_documented, by_nncf, by_onnxruntime, in_float32
from record import write_result
from tailorbird.data.images import ImageData, Normalisation, Split
from tailorbird.data.sources import folder, parquet
from tailorbird.device import ONNX, OPENVINO, Format, Precision, Runtime
from tailorbird.errors import ConfigError
from tailorbird.export.exporters import Calibration, exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.openvino import OpenVino

MAX_LOSS = 0.5
"""Points on the judging images; half of what users get by default."""

SESSIONS = 5
ORT, OV = "ONNX Runtime", "OpenVINO"


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    calibration: int = 256
    judging: int = 2500
    test: int | None = None
    minutes: float = 10.0
    runs: int = 100


QUICK = Scale(calibration=32, judging=64, test=128, minutes=0.1, runs=15)


@dataclass(frozen=True)
class Images:
    """What networks are calibrated, judged and tested on, normalised; labels are float32's own
    answers where there are none."""

    calibration: Tensor
    judging: Tensor
    test: Tensor
    judging_labels: Tensor | None = None
    test_labels: Tensor | None = None


@dataclass(frozen=True)
class Subject:
    """A network and its images, made when they are needed."""

    name: str
    shape: tuple[int, int, int]
    network: Callable[[], nn.Module]
    images: Callable[[], Images]


@dataclass(frozen=True)
class Way:
    """How a file is made: writes it and tells what is to be noted."""

    runtime: str
    name: str
    make: Callable[[nn.Module, tuple[int, int, int], Path, Images], dict[str, object]]
    format: Format

    def file(self, home: Path) -> Path:
        """Where its file lies."""
        return home / f"{self.runtime} {self.name}".replace(" ", "-") / self.format.file


# networks -----------------------------------------------------------------------------------------


def cifar(data: Path) -> ImageData:
    """All of CIFAR-10."""
    root = data / "cifar10"
    return parquet(
        sorted(root.glob("train-*.parquet")),
        test=sorted(root.glob("test-*.parquet")),
        normalisation=Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        validation=0.05,
        crop_padding=4,
        flip=True,
    )


def taken(data: ImageData, scale: Scale) -> Images:
    """Training images that calibrate, validation images that judge, and the test."""
    judging, test = first(data.validation, scale.judging), first(data.test, scale.test)
    return Images(data.train.sample(scale.calibration), judging[0], test[0], judging[1], test[1])


def first(split: Split | None, count: int | None) -> tuple[Tensor, Tensor]:
    """Up to so many images of a split, and their labels."""
    assert split is not None
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch, truth in split.batches(100):
        assert truth is not None
        images.append(batch)
        labels.append(truth)
        if count is not None and 100 * len(images) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def transformer(home: Path, images: Callable[[], ImageData], minutes: float) -> nn.Module:
    """A vision transformer for 32 pixels, trained by AdamW and kept."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(
            img_size=32, patch_size=4, num_classes=10, embed_dim=128, depth=6, num_heads=4
        )
        kept = home / "weights.pt"
        if not kept.exists():
            train(network, images(), minutes)
            torch.save(network.state_dict(), kept)
    network.load_state_dict(torch.load(kept, weights_only=True))
    return network.eval()


def train(network: nn.Module, data: ImageData, minutes: float) -> None:
    """One-cycle AdamW until the time is up; its length is that of the first steps."""
    end = time.monotonic() + 60 * minutes
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    network.train()
    while True:
        for images, labels in data.train.batches(128, generator=generator, augment=True):
            left = (end - time.monotonic()) / (60 * minutes)
            if left <= 0:
                return
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * min(1.0, 10 * (1 - left), 1.25 * left)
            optimiser.zero_grad()
            assert labels is not None
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own has no types
            optimiser.step()


def subjects(data: Path, run: Path, scale: Scale) -> list[Subject]:
    """The networks, smallest first."""
    small = partial(cifar, data)
    flowers = partial(
        folder,
        data / "flowers",
        image_size=224,
        normalisation=Normalisation((127 / 255,) * 3, (128 / 255,) * 3),
    )
    found = [
        Subject(
            f"ResNet-{depth}",
            (3, 32, 32),
            partial(trained, depth, data),
            lambda: taken(small(), scale),
        )
        for depth in DEPTHS
    ]
    home = run / "ViT"
    home.mkdir(parents=True, exist_ok=True)
    found.append(
        Subject(
            "ViT",
            (3, 32, 32),
            lambda: transformer(home, small, scale.minutes),
            lambda: taken(small(), scale),
        )
    )
    for number in (0, 2):
        found.append(
            Subject(
                f"EfficientNet-Lite{number}",
                (3, 224, 224),
                partial(lite, number),
                lambda: unlabelled(taken(flowers(), scale)),
            )
        )
    return found


def unlabelled(images: Images) -> Images:
    """The photographs alone: their classes are not those of the networks."""
    return Images(images.calibration, images.judging[:512], images.test)


# files --------------------------------------------------------------------------------------------


def exported(
    format: Format,  # noqa: A002  # the field's word
    precision: Precision,
    network: nn.Module,
    shape: tuple[int, int, int],
    path: Path,
    images: Images,
    *,
    calibration: Calibration | None = None,
) -> dict[str, object]:
    """A file as Tailorbird ships it, at batch 1."""
    written = exporter_for(format, precision).final(
        network, shape, path, options=ExportOptions(), metadata={}, calibration=calibration
    )
    return asdict(written)


def ours(
    format: Format,  # noqa: A002  # the field's word
    device: Runtime,
    network: nn.Module,
    shape: tuple[int, int, int],
    path: Path,
    images: Images,
) -> dict[str, object]:
    """A file in int8 of which the loss is judged on the device."""
    expected = answers(network, images.judging)
    right = right_labels(images.judging_labels, expected)

    def loss(file: Path) -> float:
        return percent(expected, right) - percent(device.run(file, images.judging.numpy()), right)

    calibration = Calibration(images=images.calibration, loss=loss, max_loss=MAX_LOSS)
    return exported(format, "int8", network, shape, path, images, calibration=calibration)


def plain(
    tool: Callable[[Path, Path, Tensor], None],
    format: Format,  # noqa: A002  # the field's word
    network: nn.Module,
    shape: tuple[int, int, int],
    path: Path,
    images: Images,
) -> dict[str, object]:
    """A file that a runtime's own tool makes of the file in float32."""
    source = path.with_name(f"float32{path.suffix}")
    in_float32(format, network, shape, source)
    tool(source, path, images.calibration)
    return {}


def ways(devices: Mapping[str, Runtime]) -> list[Way]:
    """All ways on the runtimes that are here."""
    ort = [
        Way(ORT, "float32", partial(exported, ONNX, "float32"), ONNX),
        Way(ORT, "default", partial(plain, by_onnxruntime, ONNX), ONNX),
        Way(ORT, "documented", partial(plain, as_documented, ONNX), ONNX),
        Way(ORT, "ours", partial(ours, ONNX, devices[ORT]), ONNX),
    ]
    if OV not in devices:
        return ort
    return [
        *ort,
        Way(OV, "float32", partial(exported, OPENVINO, "float32"), OPENVINO),
        Way(OV, "default", partial(plain, by_nncf, OPENVINO), OPENVINO),
        Way(OV, "ours", partial(ours, OPENVINO, devices[OV]), OPENVINO),
    ]


# figures ------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> np.ndarray:
    """What PyTorch says, in float32."""
    return torch.cat([network(batch) for batch in torch.split(images, 50)]).numpy()


def right_labels(labels: Tensor | None, expected: np.ndarray) -> np.ndarray:
    """The labels, or float32's own first classes."""
    return expected.argmax(1) if labels is None else labels.numpy()


def percent(found: np.ndarray, right: np.ndarray) -> float:
    """How many are right."""
    return 100 * float((found.argmax(1) == right).mean())


def accuracies(
    subject: Subject, all_ways: Sequence[Way], devices: Mapping[str, Runtime], run: Path
) -> dict[str, dict[str, Any]]:
    """Make and test what is not there yet; way -> what is known of its file."""
    home = run / subject.name
    home.mkdir(parents=True, exist_ok=True)
    store = home / "accuracy.json"
    known: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}
    todo = [way for way in all_ways if f"{way.runtime} {way.name}" not in known]
    if not todo:
        return known
    network, images = subject.network(), subject.images()
    expected = answers(network, images.test)
    right = right_labels(images.test_labels, expected)
    for way in todo:
        path = way.file(home)
        path.parent.mkdir(exist_ok=True)
        print(f"{subject.name}: {way.runtime}, {way.name}", flush=True)
        notes = way.make(network, subject.shape, path, images)
        found = devices[way.runtime].run(path, images.test.numpy())
        beside = [path.with_name(name) for name in way.format.beside]
        known[f"{way.runtime} {way.name}"] = {
            "accuracy": percent(found, right),
            "agreement": percent(found, expected.argmax(1)),
            "mean_difference": float(np.abs(found - expected).mean()),
            "images": len(images.test),
            "size_mb": sum(file.stat().st_size for file in (path, *beside)) / 1e6,
            **notes,
        }
        store.write_text(json.dumps(known, indent=1))
    return known


def latencies(
    subject: Subject, all_ways: Sequence[Way], devices: Mapping[str, Runtime], run: Path
) -> dict[str, float]:
    """Median over sessions of each file's median, in ms."""
    store = run / subject.name / "latency.json"
    if store.exists():
        known: dict[str, float] = json.loads(store.read_text())
        return known
    print(f"{subject.name}: latency", flush=True)
    found: dict[str, list[float]] = {f"{way.runtime} {way.name}": [] for way in all_ways}
    for _ in range(SESSIONS):
        for runtime, device in devices.items():
            own = [way for way in all_ways if way.runtime == runtime]
            files = [way.file(run / subject.name) for way in own]
            for way, latency in zip(own, device.measure(files), strict=True):
                found[f"{way.runtime} {way.name}"].append(latency.median_ms)
    medians = {name: median(times) for name, times in found.items()}
    store.write_text(json.dumps(medians, indent=1))
    return medians


def rows(accuracy: Mapping[str, Mapping[str, Any]], ms: Mapping[str, float]) -> dict[str, Any]:
    """Figures of a network: way -> accuracy, latency, and shares of both float32 files."""
    return {
        name: {
            **known,
            "ms": ms[name],
            f"of {ORT} float32": ms[name] / ms[f"{ORT} float32"],
            "of its own float32": ms[name] / ms[f"{runtime_of(name)} float32"],
        }
        for name, known in accuracy.items()
        if name in ms
    }


def runtime_of(name: str) -> str:
    """``"OpenVINO ours"`` -> ``"OpenVINO"``."""
    return name.rpartition(" ")[0]


def verdicts(table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """What was asked for, as measured."""
    found: list[dict[str, object]] = []
    for network, known in table.items():
        for name, row in known.items():
            way = name.removeprefix(f"{runtime_of(name)} ")
            if way not in ("default", "documented"):
                continue
            own = known[f"{runtime_of(name)} ours"]
            less = row["accuracy"] - own["accuracy"]
            found.append(
                {
                    "what": f"{network}, {runtime_of(name)}: ours less accurate than {way}, points",
                    "is": round(less, 3),
                    "at most": 0.1,
                    "met": less <= 0.1,
                }
            )
    bars = ((ORT, "of its own float32", 0.55), (OV, "of its own float32", 0.40))
    for runtime, share, most in (*bars, (OV, f"of {ORT} float32", 0.40)):
        row = table.get("ResNet-56", {}).get(f"{runtime} ours")
        if row is not None:
            what = f"ResNet-56, {runtime} int8 {share}"
            found.append(
                {
                    "what": what,
                    "is": round(row[share], 3),
                    "at most": most,
                    "met": row[share] <= most,
                }
            )
    return found


def show(table: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    print(f"\n{'network':20} {'file':24} {'%':>7} {'ms':>8} {'of ORT':>7} {'of own':>7}  kept")
    for network, known in table.items():
        for name, row in known.items():
            kept = ", ".join([str(row.get("calibration", "")), *row.get("kept", ())])
            print(
                f"{network:20} {name:24} {row['accuracy']:7.2f} {row['ms']:8.3f} "
                f"{row[f'of {ORT} float32']:6.2f}x {row['of its own float32']:6.2f}x  {kept}"
            )


def devices_here(runs: int) -> dict[str, Runtime]:
    """ONNX Runtime, and OpenVINO where it is installed."""
    found: dict[str, Runtime] = {ORT: OnnxRuntime(threads=1, runs=runs)}
    try:
        found[OV] = OpenVino(threads=1, runs=runs)
    except ConfigError as error:
        print(f"without OpenVINO: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/precision"))
    parser.add_argument("--only", nargs="*", help="networks by name, such as ResNet-56")
    parser.add_argument("--quick", action="store_true", help="a trial of the benchmark itself")
    parser.add_argument("--accuracy", action="store_true", help="make and test files, time nothing")
    parser.add_argument("--again", choices=["latency"], help="forget these figures first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale = QUICK if arguments.quick else Scale()
    run = arguments.run / ("quick" if arguments.quick else "full")
    devices = devices_here(scale.runs)
    chosen = [
        subject
        for subject in subjects(arguments.data, run, scale)
        if not arguments.only or subject.name in arguments.only
    ]
    table: dict[str, Any] = {}
    for subject in chosen:
        if arguments.again == "latency":
            (run / subject.name / "latency.json").unlink(missing_ok=True)
        known = accuracies(subject, ways(devices), devices, run)
        if arguments.accuracy:
            print(json.dumps(known, indent=1))
            continue
        table[subject.name] = rows(known, latencies(subject, ways(devices), devices, run))
        show(table)
    if arguments.accuracy:
        return
    bars = verdicts(table)
    for bar in bars:
        print(
            f"{'met' if bar['met'] else 'MISSED':6} {bar['what']}: {bar['is']} ({bar['at most']})"
        )
    figures = {
        "only": arguments.only,
        "devices": {name: device.key for name, device in devices.items()},
        "sessions": SESSIONS,
        "scale": asdict(scale),
        "table": table,
        "bars": bars,
    }
    if not arguments.quick and not arguments.accuracy:
        print(write_result("precision", figures, seed=0))


if __name__ == "__main__":
    main()
