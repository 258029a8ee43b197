import multiprocessing
import os
import signal
import types
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset

from tailorbird.data.datasets import cifar, from_datasets
from tailorbird.data.images import Normalisation, TensorSplit
from tailorbird.data.loader import LoaderSplit
from tailorbird.errors import DataError
from tests.data.makers import picture


class Pictures:
    """Pillow images with labels; augmented by noise from all three global generators."""

    classes = ("a", "b")

    def __init__(self, count=20, noisy=False, broken=(), labelled=True):
        self.count, self.noisy, self.broken, self.labelled = count, noisy, broken, labelled

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        import random

        if index in self.broken:
            raise OSError("disk on fire")
        image = np.asarray(picture(index)).copy()
        if self.noisy:
            image[0, 0, 0] = random.randrange(256)
            image[0, 0, 1] = np.random.randint(256)
            image[0, 0, 2] = int(torch.randint(256, ()))
        return (image, index % 2) if self.labelled else image


def walk(split, seed=0, augment=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([x for x, _ in split.batches(4, generator=generator, augment=augment)])


def test_items_with_labels():
    data = from_datasets(Pictures(), Pictures(4))
    assert isinstance(data.train, LoaderSplit)
    assert data.classes == ("a", "b")
    assert data.size == {"train": 18, "validation": 2, "test": 4}
    images, labels = next(iter(data.test.batches(3)))
    expected = torch.stack(
        [torch.from_numpy(np.array(picture(i))).permute(2, 0, 1) for i in range(3)]
    )
    assert torch.equal(images, data.normalisation(expected))
    assert labels.tolist() == [0, 1, 0]
    memory = from_datasets(Pictures(), Pictures(4), in_memory=True)
    assert isinstance(memory.train, TensorSplit)
    assert memory.fingerprint == data.fingerprint


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_that_are_not_finite_count_as_corrupt(in_memory):
    images = torch.zeros(20, 1, 4, 4)
    images[5, 0, 1, 1], images[6, 0, 1, 1] = float("nan"), float("inf")
    whole, held = TensorDataset(images), TensorDataset(torch.zeros(4, 1, 4, 4))

    def walk(**arguments):
        data = from_datasets(whole, validation=held, in_memory=in_memory, **arguments)
        return sum(len(batch) for batch, _ in data.train.batches(4))

    with pytest.raises(DataError, match=r"image 5.*NaN or infinity"):
        walk()
    with nullcontext() if in_memory else pytest.warns(UserWarning, match="left out image [56]:"):
        assert walk(skip_corrupt=True) == 18


def test_images_alone_and_labels_set_aside():
    for data in (
        from_datasets(Pictures(labelled=False)),
        from_datasets(Pictures(), labels=False),
        from_datasets(TensorDataset(torch.zeros(9, 1, 4, 4))),
    ):
        assert not data.labelled
        assert data.classes is None
        assert next(iter(data.train.batches(2)))[1] is None


def test_shares_of_a_walk_read_every_image_once_between_them():
    class Counted(Pictures):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    data = from_datasets(Counted(16, noisy=True), Pictures(4), validation=Pictures(4))
    walks = {"augment": True, "drop_last": True}
    whole = data.train.batches(8, generator=torch.Generator().manual_seed(0), **walks)
    together = torch.cat([images for images, _ in whole])
    read.clear()
    shares = [
        [
            images
            for images, _ in data.train.batches(
                8, generator=torch.Generator().manual_seed(0), share=(part, 2), **walks
            )
        ]
        for part in range(2)
    ]
    assert sorted(read) == list(range(16))
    assert torch.equal(torch.cat([shares[0][0], shares[1][0], *map(list.pop, shares)]), together)


def test_the_datasets_own_augmentation_follows_the_seed_and_spares_validation():
    data = from_datasets(Pictures(noisy=True), plain=Pictures())
    assert torch.equal(walk(data.train, 1), walk(data.train, 1))
    assert not torch.equal(walk(data.train, 1).sort(0).values, walk(data.train, 2).sort(0).values)
    assert torch.equal(
        walk(data.train, 1, augment=False).sort(0).values,
        walk(from_datasets(Pictures()).train, 1).sort(0).values,
    )
    state = np.random.get_state()[1].copy()
    walk(data.train)
    assert np.array_equal(state, np.random.get_state()[1])
    assert from_datasets(Pictures(noisy=True)).fingerprint == (
        from_datasets(Pictures(noisy=True)).fingerprint
    )


def test_labels_are_found_without_reading_images():
    targets = [0, 1] * 10
    counting = types.SimpleNamespace(reads=0)

    class Counting(Pictures):
        def __init__(self):
            super().__init__()
            self.targets = targets

        def __getitem__(self, index):
            counting.reads += 1
            return super().__getitem__(index)

    data = from_datasets(Subset(Counting(), list(range(10))))
    assert counting.reads == 1
    assert (
        sorted([*data.train.labels.tolist(), *data.validation.labels.tolist()]) == [0] * 5 + [1] * 5
    )
    assert data.classes == ("a", "b")


def test_float_images_have_to_be_in_range_or_declared():
    wild = TensorDataset(torch.randn(10, 3, 4, 4), torch.arange(10) % 2)
    with pytest.raises(DataError, match=r"expected 0 to 1.*Normalisation\.identity"):
        from_datasets(wild)
    data = from_datasets(wild, normalisation=Normalisation.identity(3))
    images, _ = next(iter(data.train.batches(1)))
    assert any(torch.equal(images[0], one) for one in wild.tensors[0])


@pytest.mark.parametrize("in_memory", [False, True])
def test_items_that_fail(in_memory):
    def read(**options):
        data = from_datasets(Pictures(broken=(3,), labelled=False), in_memory=in_memory, **options)
        return sum(len(x) for s in (data.train, data.validation) for x, _ in s.batches(4))

    with pytest.raises(DataError, match=r"image 3: OSError: disk on fire.*skip_corrupt: true"):
        read()
    if in_memory:
        assert read(skip_corrupt=True) == 19
    else:
        with pytest.warns(UserWarning, match="left out image 3"):
            assert read(skip_corrupt=True) == 19


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": Endless()}, "expected a map-style dataset"),
        ({"train": []}, "train: no images"),
        ({"train": ["text"] * 4}, "no readable image among the first 4.*Pillow image.*got str"),
        ({"train": Pictures(), "plain": Pictures(3)}, "plain: expected train's 20 images, got 3"),
        (
            {"train": Pictures(), "classes": ("only",)},
            "10 labels out of range .expected 0 to 0.: image 1: 1",
        ),
        (
            {"train": Pictures(), "test": Pictures(4, labelled=False)},
            "labels in some splits only: test",
        ),
        (
            {"train": Pictures(), "normalisation": Normalisation((0.5,), (0.5,))},
            "for 1 channels, the images have 3",
        ),
        ({"train": Subset(Pictures(), [0, 2, 4])}, "all 3 images are of one class"),
        (
            {"train": [(torch.zeros(1, 2, 2), "cat")] * 3},
            "expected a whole number as label, got str",
        ),
        (
            {"train": [torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)], "in_memory": True},
            "2 different sizes",
        ),
    ],
)
def test_wrong_datasets(arguments, words):
    with pytest.raises(DataError, match=words):
        from_datasets(**arguments)


def test_cifar_says_what_it_expects_where(tmp_path):
    with pytest.raises(
        DataError, match=r"expected torchvision's folder 'cifar-10-batches-py'.*download: true"
    ):
        cifar(tmp_path)
    with pytest.raises(DataError, match="cifar10 or cifar100, got 'cifar11'"):
        cifar(tmp_path, "cifar11")


def test_cifar_reads_what_torchvision_gives(monkeypatch, tmp_path):
    import torchvision.datasets

    def fake(root, train, download):
        count = 40 if train else 20
        data = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        return types.SimpleNamespace(
            data=data, targets=[i % 10 for i in range(count)], classes=[str(i) for i in range(10)]
        )

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    data = cifar(tmp_path, validation=0.25)
    assert data.size == {"train": 30, "validation": 10, "test": 20}
    assert data.input_shape == (3, 32, 32)
    assert torch.equal(
        data.test.images[0].permute(1, 2, 0), torch.from_numpy(fake("", False, False).data[0])
    )


class Bad(torch.utils.data.Dataset):
    """Every fifth image does something else."""

    targets = [0, 1] * 10

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index % 5 == 4:
            self.act()
        return torch.rand(1, 4, 4, dtype=torch.float64), index % 2


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    raise SystemExit(3)


def walked(act, **changes):
    data = from_datasets(Bad(act), name="bad", **changes)
    return [images for images, _ in replace(data.train, workers=2).batches(4)]


def test_other_floats_are_taken():
    assert {images.dtype for images in walked(int)} == {torch.float32}


def test_an_exit_is_a_named_fault():
    with pytest.raises(DataError, match=r"image \d+: SystemExit: 3; repair or remove"):
        walked(leave)


# a worker killed while it hands a tensor over leaves multiprocessing's socket to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_is_a_sentence():
    with pytest.raises(DataError, match="a process that reads images was killed, perhaps for want"):
        walked(kill)


def test_a_worker_killed_in_the_meantime_is_told_at_the_next_batch():
    data = from_datasets(Bad(int), name="bad")
    before, alone = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    batches = replace(data.train, workers=2).batches(1)
    next(batches)
    for worker in set(multiprocessing.active_children()) - alone:
        worker.kill()
        worker.join()  # a handler would raise here, in the middle of something else
    with pytest.raises(DataError, match="a process that reads images was killed"):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) is before


class Negative(Bad):
    def __len__(self):
        return -1  # noqa: PLE0303


def test_a_length_that_is_none_is_told():
    with pytest.raises(DataError, match=r"train: its len\(\) raises ValueError"):
        from_datasets(Negative(int))


class Records(torch.utils.data.Dataset):
    """Items as dictionaries, and other labels beside them."""

    targets = torch.arange(20) // 10
    classes = ("even", "odd")

    def __len__(self):
        return 20

    def __getitem__(self, index):
        picture = torch.full((3, 4, 4), index, dtype=torch.uint8)
        return {"photo": picture, "parity": index % 2, "id": f"n{index}"}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("whole", [Records(), Subset(Records(), range(20))])
@pytest.mark.parametrize("label_key", ["parity", None])
def test_dictionaries_by_the_keys_named(in_memory, whole, label_key):
    data = from_datasets(
        whole,
        whole,
        plain=whole,
        image_key="photo",
        label_key=label_key,
        in_memory=in_memory,
        normalisation=Normalisation.identity(3),
    )
    assert data.classes == (("even", "odd") if label_key else None)
    for part in (data.train, data.validation, data.test):
        for images, labels in part.batches(7):
            numbers = (images[:, 0, 0, 0] * 255).round().int().tolist()
            assert numbers
            expected = [number % 2 for number in numbers]
            assert (None if labels is None else labels.tolist()) == (
                expected if label_key else None
            )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "a dictionary with photo, parity, id; say which is what by image_key and label_key"),
        ({"label_key": "parity"}, "label_key: expected image_key beside it; set both"),
        ({"image_key": "image"}, "lacks image; it has photo, parity, id; set image_key"),
        ({"image_key": "photo", "label_key": "id"}, "expected a whole number as label, got str"),
    ],
)
def test_keys_that_are_not_there(given, words):
    with pytest.raises(DataError, match=words):
        from_datasets(Records(), **given)


def test_keys_for_items_that_are_no_dictionaries():
    with pytest.raises(DataError, match="expected a dictionary with image, got tuple; leave image"):
        from_datasets(TensorDataset(torch.zeros(9, 1, 4, 4)), image_key="image")


def test_a_holdout_may_have_labels_or_not():
    apart = from_datasets(Pictures(), validation=Pictures(4))
    assert apart.holdout is apart.validation
    for labelled in (True, False):
        data = from_datasets(Pictures(), holdout=Pictures(6, labelled=labelled))
        assert data.size == {"train": 18, "validation": 2, "test": 0, "holdout": 6}
        assert (data.holdout.labelled, data.labelled) == (labelled, True)
    assert not from_datasets(Pictures(), holdout=Pictures(6), labels=False).holdout.labelled
