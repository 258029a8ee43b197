"""The contracts accept what is right, and find what is wrong."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tailorbird.data.digits import digits
from tailorbird.data.folder import folder
from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.search.baselines import RandomSearch
from tailorbird.targets import Latency
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
