import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.data.digits import digits
from tailorbird.data.division import divide
from tailorbird.data.images import (
    IMAGENET,
    ImageData,
    Normalisation,
    TensorSplit,
    shift,
    spaced,
)
from tailorbird.errors import DataError
from tailorbird.task import check_head


def split(count=37, **extra):
    images = torch.arange(count * 3 * 6 * 5).remainder(251).to(torch.uint8).view(count, 3, 6, 5)
    return TensorSplit(images, torch.arange(count), IMAGENET, **extra)


def seed(number):
    return torch.Generator().manual_seed(number)


def gathered(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_normalisation_agrees_with_torchvision():
    from torchvision.transforms.v2.functional import normalize, to_dtype

    images = split().images
    expected = normalize(to_dtype(images, torch.float32, scale=True), IMAGENET.mean, IMAGENET.std)
    torch.testing.assert_close(IMAGENET(images), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(IMAGENET(images / 255), expected, atol=2e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_shift_is_pad_crop_and_mirror(padding, height, width, number):
    images = torch.randint(1, 256, (5, 2, height, width), generator=seed(number)).to(torch.uint8)
    moves = torch.randint(0, 2 * padding + 1, (5, 3), generator=seed(number + 1))
    moves[:, 2] = torch.tensor([0, 1, 0, 1, 1])
    for image, (row, column, mirror), out in zip(
        images, moves.tolist(), shift(images, moves, padding), strict=True
    ):
        padded = torch.nn.functional.pad(image, (padding,) * 4)
        crop = padded[:, row : row + height, column : column + width]
        assert torch.equal(out, crop.flip(-1) if mirror else crop)


def test_without_a_generator_images_come_in_order():
    one = split()
    images, labels = gathered(one.batches(10))
    assert labels.tolist() == list(range(37))
    assert torch.equal(images, IMAGENET(one.images))


@pytest.mark.parametrize("augment", [False, True])
def test_one_seed_gives_one_walk(augment):
    one = split(crop_padding=2, flip=True)
    first = gathered(one.batches(8, generator=seed(3), augment=augment))
    again = gathered(one.batches(8, generator=seed(3), augment=augment))
    other = gathered(one.batches(8, generator=seed(4), augment=augment))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert sorted(first[1].tolist()) == list(range(37))
    assert first[1].tolist() != other[1].tolist()


def test_a_walk_given_up_leaves_the_generator_as_a_whole_one_does():
    one, left, whole = split(crop_padding=1), seed(0), seed(0)
    next(one.batches(4, generator=left, augment=True))
    list(one.batches(4, generator=whole, augment=True))
    assert torch.equal(left.get_state(), whole.get_state())


def test_walking_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(split(flip=True).batches(4, generator=seed(0), augment=True))
    assert torch.equal(before, torch.get_rng_state())


def test_last_batch_may_be_left_out():
    assert [len(x) for x, _ in split().batches(10)] == [10, 10, 10, 7]
    assert [len(x) for x, _ in split().batches(10, drop_last=True)] == [10, 10, 10]


@pytest.mark.parametrize("parts", [2, 3])
def test_shares_of_a_walk_make_up_the_whole(parts):
    one = split(crop_padding=2, flip=True)
    walks = {"generator": seed(3), "augment": True, "drop_last": True}
    whole = list(one.batches(12, **walks))
    shares = [
        list(one.batches(12, **walks | {"generator": seed(3)}, share=(part, parts)))
        for part in range(parts)
    ]
    for (images, labels), *parted in zip(whole, *shares, strict=True):
        assert [len(images) for images, _ in parted] == [12 // parts] * parts
        assert torch.equal(torch.cat([images for images, _ in parted]), images)
        assert torch.equal(torch.cat([labels for _, labels in parted]), labels)


def test_refusals_say_why():
    with pytest.raises(DataError, match="size of 1 or more, got 0"):
        split().batches(0)
    with pytest.raises(DataError, match="give a generator"):
        split().batches(4, augment=True)
    with pytest.raises(DataError, match=r"got \(2, 3\) of torch.int64; labels.*crop_padding"):
        TensorSplit(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), IMAGENET, crop_padding=-1)
    with pytest.raises(DataError, match="1 channels, the normalisation is for 3"):
        TensorSplit(torch.zeros(2, 1, 3, 3), None, IMAGENET)
    with pytest.raises(DataError, match="one mean and one std per channel"):
        Normalisation((0.5,), (0.5, 0.5))
    with pytest.raises(DataError, match="has to be positive"):
        Normalisation((0.5,), (0.0,))


@given(st.integers(0, 50), st.integers(0, 60))
def test_spaced_indices_are_distinct_and_inside(total, count):
    found = spaced(total, count).tolist()
    assert len(set(found)) == min(total, count)
    assert all(0 <= index < total for index in found)


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31),
)
def test_divisions_cover_all_and_keep_every_class_on_both_sides(labels, share, number):
    try:
        stay, held = divide(labels, len(labels), share, seed=number)
    except DataError as error:
        assert "fewer than two" in str(error)
        assert any(labels.count(one) == 1 for one in labels)
        return
    assert sorted([*stay, *held]) == list(range(len(labels)))
    for one in set(labels):
        on_held = sum(labels[i] == one for i in held)
        size = labels.count(one)
        assert 1 <= on_held < size
        assert abs(on_held - share * size) <= 1


def test_division_refuses_shares_and_small_sets():
    with pytest.raises(DataError, match=r"between 0 and 1 \(exclusive\), got 1.5"):
        divide(None, 10, 1.5, seed=0)
    with pytest.raises(DataError, match="class 1 has fewer than two images"):
        divide([0, 0, 1], 3, 0.3, seed=0)
    with pytest.raises(DataError, match="there is fewer than two"):
        divide(None, 1, 0.3, seed=0)


def test_digits_are_stratified_and_the_same_for_one_seed():
    one, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    assert sum(one.size.values()) == 1797
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert not one.train.flip
    for part in (one.train, one.validation, one.test):
        counts = part.labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 8
    assert digits(image_size=8).input_shape == (1, 8, 8)
    original = digits(image_size=8).train.images
    assert torch.equal(digits(resize="nearest").train.images[:, :, ::2, ::2], original)
    assert original.max() == 255
    with pytest.raises(DataError, match="8 to 512, got 4"):
        digits(image_size=4)


def data_of(labels, classes=None):
    images = torch.zeros(len(labels), 1, 4, 4)
    part = TensorSplit(images, torch.tensor(labels), Normalisation.identity(1))
    return ImageData(
        train=part,
        validation=part,
        test=None,
        classes=classes,
        normalisation=part.normalisation,
        input_shape=(1, 4, 4),
        labelled=True,
        name="toy",
    )


def test_head_has_to_fit_the_classes():
    check_head(data_of([0, 1, 2]), 3)
    check_head(data_of([0, 1, 2]), 5)
    with pytest.raises(DataError, match="holds label 2 but the network has 2 outputs"):
        check_head(data_of([0, 1, 2]), 2)
    words = r"3 classes \(a, b, c\) but the network has 10.*num_classes=3"
    with pytest.raises(DataError, match=words):
        check_head(data_of([0, 1, 2], ("a", "b", "c")), 10)


def test_fingerprint_sees_labels_pixels_and_names():
    prints = {
        data_of([0, 1, 2]).fingerprint,
        data_of([0, 2, 1]).fingerprint,
        data_of([0, 1, 2, 2]).fingerprint,
        data_of([0, 1, 2], ("a", "b", "c")).fingerprint,
    }
    assert len(prints) == 4
    assert all(len(one) == 16 for one in prints)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_the_same_on_every_device():
    one = split(crop_padding=2, flip=True)
    here = gathered(one.batches(8, generator=seed(1), augment=True))
    for there in (
        one.to("cuda").batches(8, generator=seed(1), augment=True),
        one.batches(8, generator=seed(1), augment=True, device=torch.device("cuda")),
    ):
        images, labels = gathered(there)
        assert images.is_cuda
        torch.testing.assert_close(images.cpu(), here[0])
        assert torch.equal(labels.cpu(), here[1])


@pytest.mark.slow
def test_an_epoch_of_cifar_size_takes_seconds_at_most():
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    one = TensorSplit(images, None, IMAGENET, crop_padding=4, flip=True)
    start = time.process_time()
    for _ in one.batches(128, generator=seed(0), augment=True):
        pass
    assert time.process_time() - start < 5
