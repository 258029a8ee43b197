"""The contracts accept what is right, and find what is wrong."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.data.digits import digits
from tailorbird.data.folder import folder
from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.device import Description, Format, Latency
from tailorbird.errors import MeasurementError
from tailorbird.export.onnx import export_many
from tailorbird.measure.answering import run_onnx
from tailorbird.search.baselines import RandomSearch
from tailorbird.testing import check_device, check_images, check_split, check_strategy
from tests.data.makers import fill
from tests.supernet.tiny import stripes


def test_import_tailorbird_brings_neither_contracts_nor_pytest():
    program = (
        "import sys, tailorbird; "
        "print([m for m in sys.modules if m in ('tailorbird.testing', 'pytest')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["digits", "folder", "memory"])
def test_own_sources_keep_to_the_contract(kind, tmp_path):
    if kind == "folder":
        for name in "ab":
            fill(tmp_path / name, 12, start=12 * (name == "b"))
        check_images(folder(tmp_path, image_size=8, seed=0))
    else:
        check_images(digits(seed=0, image_size=8) if kind == "digits" else stripes())


class Reversed(TensorSplit):
    """Walks from the end, and says nothing of it."""

    def batches(self, size, **options):
        kept = [self.images, self.labels, self.normalisation]
        turned = TensorSplit(kept[0].flip(0), kept[1].flip(0), kept[2])
        return turned.batches(size, **options)


class Everything(TensorSplit):
    """Each of several processes gets whole batches."""

    def batches(self, size, share=None, **options):
        return super().batches(size, **options)


@pytest.mark.parametrize(
    ("kind", "says"), [(Reversed, "labels in the split's order"), (Everything, "share: ")]
)
def test_splits_that_are_wrong_are_found(kind, says):
    pixels = torch.arange(8 * 4, dtype=torch.uint8).view(8, 1, 2, 2)
    right = (pixels, torch.arange(8), Normalisation.identity(1))
    check_split(TensorSplit(*right))
    with pytest.raises(AssertionError, match=says):
        check_split(kind(*right))


def test_images_of_another_shape_than_said_are_found():
    with pytest.raises(AssertionError, match="another shape than said"):
        check_images(replace(stripes(), input_shape=(3, 9, 9)))


class Careless:
    """Finds well, and says another number of evaluations."""

    name = "careless"

    def search(self, family, limits, **options):
        found = RandomSearch(evaluations=4000).search(family, limits, **options)
        return replace(found, strategy=self.name, evaluations=1)


def test_a_strategy_that_is_wrong_is_found():
    with pytest.raises(AssertionError):
        check_strategy(Careless())


class Sorting:
    """A device that answers in an order of its own."""

    key = "sorting"

    def measure(self, models):
        sizes = sorted(path.stat().st_size for path in models)
        return [Latency(median_ms=size, spread_ms=0.0, runs=1, warmup=0) for size in sizes]


def test_a_device_that_is_wrong_is_found(tmp_path):
    files = [tmp_path / "small", tmp_path / "large"]
    for size, file in enumerate(files, 1):
        file.write_bytes(b"x" * size)
    with pytest.raises(AssertionError, match="rising latencies"):
        check_device(Sorting(), files)


class Right:
    """Times files by their size, and runs them by ONNX Runtime; its parts are replaced."""

    key = "right"
    time_limit_s = 5.0

    def measure(self, models):
        for path in models:
            if not path.exists():
                raise MeasurementError(f"{path.name}: no such file")
        return [
            Latency(median_ms=path.stat().st_size, spread_ms=0.0, runs=1, warmup=0)
            for path in models
        ]

    def run(self, artifact, images):
        return run_onnx(artifact, images)


def like(**members):
    return type("Own", (Right,), members)()


def answers(change):
    """A device whose answers are changed."""
    return like(run=lambda self, artifact, images: change(run_onnx(artifact, images)))


def adds_to_images(self, artifact, images):
    found = run_onnx(artifact, images)
    images += 1
    return found


def counts_its_rows(self, artifact, images):
    return run_onnx(artifact, images) + np.arange(len(images), dtype=np.float32)[:, None] * 9


def takes_any_file(self, artifact, images):
    return run_onnx(artifact, images) if artifact.exists() else images


def measures(change):
    """A device whose latencies are changed."""
    return like(measure=lambda self, models: change(Right().measure(models)))


TOLD = Description(machine="m", system="s", runtime="r", version="1", cores=2, governor="fast")


def describes(given):
    """A device that says this of itself."""
    return like(describe=lambda self: given)


def with_fields(**fields):
    return measures(lambda found: [replace(one, **fields) for one in found])


@pytest.fixture(scope="module")
def rising(tmp_path_factory):
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, width)) for width in (2, 40)]
    return export_many(
        [(net, (3, 2, 2)) for net in nets], tmp_path_factory.mktemp("rising"), ["a", "b"]
    )


def test_a_device_that_runs_files_keeps_to_the_contract(rising):
    check_device(Right(), rising)
    check_device(describes(TOLD), rising)
    own = like(format=Format("engine", "model.engine"))
    check_device(own, rising, images=np.zeros((2, 3, 2, 2), np.float32))
    with pytest.raises(AssertionError, match="give images"):
        check_device(own, rising)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (lambda: like(key=""), "expected text that names the device"),
        (lambda: like(key="a\nb"), "printable characters"),
        (lambda: like(key=property(lambda self: str(next(TICKS)))), "changes"),
        (lambda: like(measure=None), "expected a device with `key` and `measure`"),
        (lambda: like(time_limit_s="5"), "time_limit_s is '5'"),
        (lambda: like(format="onnx"), "its format is 'onnx', expected"),
        (lambda: like(format=Format("", "model.onnx")), r"its format is Format\(name=''"),
        (lambda: like(precisions=()), r"its precisions are \(\), expected"),
        (lambda: like(precisions="float32"), "its precisions are 'float32', expected"),
        (lambda: like(precisions=("float32", "float32")), "each once"),
        (lambda: like(precisions=("float8",)), r"its precisions are \('float8',\)"),
        (lambda: like(precisions=(["float32"],)), "its precisions are"),
        (lambda: like(describe="fine"), "describe"),
        (lambda: describes({"machine": "m"}), "gave {'machine': 'm'}, expected a tailorbird.dev"),
        (lambda: describes(replace(TOLD, machine="")), "gave '', expected texts that are not"),
        (lambda: describes(replace(TOLD, cores=float("nan"))), "gave nan, expected texts"),
        (lambda: describes(replace(TOLD, temperature_c="warm")), "gave 'warm', expected texts"),
        (lambda: describes(replace(TOLD, governor=1)), "gave 1, expected texts"),
        (lambda: measures(lambda found: found[::-1]), "expected rising latencies"),
        (lambda: measures(lambda found: found or None), "returned NoneType"),
        (lambda: measures(lambda found: found[1:]), "figures, expected one per file"),
        (lambda: measures(lambda found: [one.median_ms for one in found]), "expected a tailorbird"),
        (lambda: measures(iter), "returned list_iterator"),
        (lambda: with_fields(median_ms=float("nan")), "median_ms=nan"),
        (lambda: with_fields(median_ms=-1.0), "median_ms=-1"),
        (lambda: with_fields(median_ms=1e300), "median_ms=1e"),
        (lambda: with_fields(spread_ms=-1.0), "spread_ms=-1"),
        (lambda: with_fields(runs=0), "runs=0"),
        (lambda: like(measure=lambda self, models: []), "returned 0 figures"),
        (lambda: like(run=5), "its run is 5, expected a method"),
        (lambda: answers(lambda found: None), "gave None, expected a numpy array of 3 rows"),
        (lambda: answers(lambda found: found.tolist()), "expected a numpy array"),
        (lambda: answers(iter), "expected a numpy array"),
        (lambda: answers(torch.from_numpy), "expected a numpy array"),
        (lambda: answers(lambda found: found[:1]), r"float32 of shape \(1, 40\)"),
        (lambda: answers(lambda found: found.argmax(1)), r"int64 of shape \(3,\)"),
        (lambda: answers(lambda found: found.astype(str)), "gave an array of <U"),
        (lambda: answers(lambda found: found * np.nan), "values that are not finite"),
        (lambda: answers(lambda found: found[:, :2]), r"expected \(3, 40\), got \(3, 2\)"),
        (lambda: answers(lambda found: found + 1), "what ONNX Runtime answers"),
        (lambda: like(run=counts_its_rows), "wherever it stands"),
        (lambda: like(run=adds_to_images), "images to be left as they are"),
        (
            lambda: like(run=takes_any_file),
            "expected an ExportError for a file that is not there",
        ),
    ],
)  # fmt: skip
def test_every_misbehaviour_of_a_device_is_found(device, says, rising):
    with pytest.raises(AssertionError, match=says):
        check_device(device(), rising)


TICKS = itertools.count()
