import os
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tailorbird.data.contents import Contents
from tailorbird.data.decode import Decoder
from tailorbird.data.encoded import Files
from tailorbird.data.folder import folder
from tailorbird.data.images import IMAGENET, Normalisation, TensorSplit
from tailorbird.data.loader import LoaderSplit
from tailorbird.errors import DataError
from tailorbird.testing import check_images
from tests.data.makers import encoded, fill, picture


def classed(root, count=6, **options):
    fill(root / "bird", count, 0, **options)
    fill(root / "nest", count, 100, **options)
    return root


def pixels_of(data):
    """Every training and validation image, by its label, as a set of byte strings."""
    found = {}
    for part in (data.train, data.validation):
        for images, labels in part.batches(4):
            for index, image in enumerate(images):
                label = None if labels is None else int(labels[index])
                back = (image * 0.5 + 0.5) * 255
                found.setdefault(label, set()).add(back.round().to(torch.uint8).numpy().tobytes())
    return found


def test_pixels_and_labels_arrive_unchanged(tmp_path):
    half = Normalisation((0.5,) * 3, (0.5,) * 3)
    for memory in (2048, 0):
        data = folder(classed(tmp_path / "set"), normalisation=half, memory_mb=memory)
        assert isinstance(data.train, TensorSplit if memory else LoaderSplit)
        assert data.classes == ("bird", "nest")
        assert data.size == {"train": 10, "validation": 2, "test": 0}
        found = pixels_of(data)
        for label, start in ((0, 0), (1, 100)):
            expected = {
                np.asarray(picture(start + i)).transpose(2, 0, 1).tobytes() for i in range(6)
            }
            assert found[label] == expected


def test_lazy_and_memory_give_the_same_data(tmp_path):
    root = classed(tmp_path / "set")
    assert folder(root).fingerprint == folder(root, memory_mb=0).fingerprint


def test_split_folders_play_their_roles(tmp_path):
    classed(tmp_path / "train")
    classed(tmp_path / "val", 2)
    data = folder(tmp_path)
    assert data.size == {"train": 10, "validation": 2, "test": 4}
    classed(tmp_path / "test", 3)
    data = folder(tmp_path)
    assert data.size == {"train": 12, "validation": 4, "test": 6}
    fill(tmp_path / "test" / "egg", 2)
    with pytest.raises(DataError, match="test: classes that train lacks: egg"):
        folder(tmp_path)


def test_unlabelled(tmp_path):
    flat = folder(fill(tmp_path / "flat", 10))
    assert (flat.labelled, flat.classes, flat.train.labels) == (False, None, None)
    images, labels = next(iter(flat.train.batches(4)))
    assert images.shape == (4, 3, 8, 8)
    assert labels is None
    assert not folder(classed(tmp_path / "set"), labels=False).labelled


def test_corrupt_images_are_counted_named_and_left_out_only_on_request(tmp_path):
    root = classed(tmp_path / "set")
    for number in range(6):
        (root / "bird" / f"x{number}.jpg").write_bytes(encoded(1, kind="JPEG")[:200])
    (root / "nest" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        folder(root)
    text = str(caught.value)
    assert "7 corrupt images" in text
    assert "x4.jpg" in text
    assert "x5.jpg" not in text
    assert "and 2 more" in text
    assert "skip_corrupt: true" in text
    data = folder(root, skip_corrupt=True)
    assert data.skipped == 7
    assert data.size["train"] + data.size["validation"] == 12
    assert data.fingerprint == folder(classed(tmp_path / "clean")).fingerprint


def test_a_fault_that_only_reading_shows_is_named_in_lazy_splits(tmp_path):
    root = classed(tmp_path / "set")
    whole = encoded(7, size=(8, 8))
    (root / "bird" / "cut.png").write_bytes(whole[:100])  # the header is whole, pixels are not
    data = folder(root, memory_mb=0)
    with pytest.raises(DataError, match=r"cut\.png.*skip_corrupt: true"):
        pixels_of(data)
    data = folder(root, memory_mb=0, skip_corrupt=True)
    with pytest.warns(UserWarning, match=r"left out .*cut\.png"):
        assert sum(len(found) for found in pixels_of(data).values()) == 12


def test_sizes_and_colours_that_differ_say_the_way_out(tmp_path):
    root = classed(tmp_path / "set")
    fill(root / "bird", 2, 50, size=(6, 9))
    fill(root / "nest", 2, 60, mode="L")
    for memory in (2048, 0):
        with pytest.raises(DataError) as caught:
            folder(root, memory_mb=memory)
        text = str(caught.value)
        assert "2 different sizes" in text
        assert "8x8 (14), 6x9 (2)" in text
        assert "set image_size" in text
    assert folder(root, image_size=4, channels=3).input_shape == (3, 4, 4)
    assert folder(root, image_size=(4, 6), channels=1).input_shape == (1, 4, 6)


def test_grey_folders_have_one_channel(tmp_path):
    data = folder(classed(tmp_path / "set", mode="L"))
    assert data.input_shape == (1, 8, 8)
    assert data.normalisation.mean == (0.5,)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda p: p / "absent", "expected a folder of images, none exists"),
        (lambda p: p, "no images"),
        (lambda p: fill(p / "only", 5).parent, "all 5 images are of one class"),
        (lambda p: fill(fill(p / "one", 5).parent / "two", 1, 9).parent, "class 1 has fewer than"),
        (lambda p: fill(classed(p), 2), "2 images lie beside 2 folders, such as 000.png"),
        (lambda p: (classed(p), (p / "egg").mkdir())[0], "class folders without images: egg"),
    ],
)
def test_wrong_folders(tmp_path, build, words):
    with pytest.raises(DataError, match=words):
        folder(build(tmp_path))


def test_wrong_arguments_are_all_listed(tmp_path):
    with pytest.raises(DataError) as caught:
        folder(tmp_path, image_size=0, channels=2, validation=1.0, crop_scale=0.0, memory_mb=-1)
    for word in ("image_size", "channels", "validation", "crop_scale", "memory_mb"):
        assert f"{word}: expected" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_lazy_augmentation_depends_on_the_seed_alone(tmp_path, workers):
    root = classed(tmp_path / "set", 20, size=(16, 16))
    options = {"image_size": 8, "crop_scale": 0.3, "flip": True}

    def walk(data, seed):
        generator = torch.Generator().manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .*multi-threaded")
            return list(data.train.batches(8, generator=generator, augment=True))

    before = torch.get_rng_state()
    here, there = folder(root, **options), folder(root, workers=workers, **options)
    for (x, y), (u, v) in zip(walk(here, 1), walk(there, 1), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert not torch.equal(walk(here, 1)[0][0], walk(here, 2)[0][0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_mode_decodes_as_pillow_does(tmp_path, mode, kind):
    image = picture(3, (9, 7))
    image = (
        Image.fromarray(np.full((9, 7), 0x8040, np.uint16))
        if mode == "I;16"
        else image.convert(mode)
    )
    path = tmp_path / "image"
    try:
        image.save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    except OSError:
        pytest.skip(f"{kind} has no {mode}")
    pixels = Decoder()(path.read_bytes())
    with Image.open(path) as again:
        if again.mode.startswith("I;16"):
            assert (pixels == 0x80).all()
            return
        grey = again.mode in ("1", "L", "LA")
        expected = np.asarray(again.convert("L" if grey else "RGB"))
    assert np.array_equal(pixels[0] if grey else pixels.transpose(1, 2, 0), expected)


@pytest.mark.parametrize("memory", [2048, 0])
def test_grey_among_colour_gets_three_channels_and_is_counted(tmp_path, memory):
    root = classed(tmp_path / "set")
    fill(root / "nest", 2, 60, mode="L")
    data = folder(root, memory_mb=memory)
    assert data.input_shape == (3, 8, 8)
    assert data.told == ("2 grey images among colour ones were given three channels",)
    images = torch.cat([x for x, _ in data.train.batches(5)])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    pixels = images * std + mean
    grey = (pixels - pixels[:, :1]).abs().amax((1, 2, 3)) < 1e-5
    assert 0 < int(grey.sum()) <= 2


def test_a_grey_test_split_follows_colour_training_images(tmp_path):
    classed(tmp_path / "set" / "train")
    classed(tmp_path / "set" / "test", mode="L")
    data = folder(tmp_path / "set")
    assert next(iter(data.test.batches(2)))[0].shape == (2, 3, 8, 8)


def test_val_beside_train_says_what_it_serves_as(tmp_path):
    for name in ("train", "val"):
        classed(tmp_path / "set" / name)
    data = folder(tmp_path / "set")
    assert data.test is not None
    assert "the folder 'val' serves as test split" in data.told[0]
    classed(tmp_path / "set" / "test")
    assert folder(tmp_path / "set").told == ()


@pytest.mark.parametrize("memory", [2048, 0])
def test_an_exchanged_image_changes_the_fingerprint(tmp_path, memory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = classed(tmp_path / "set")
    before = folder(root, memory_mb=memory).fingerprint
    assert folder(root, memory_mb=2048 - memory).fingerprint == before
    for path in sorted(root.rglob("*.png")):
        whole, times = path.read_bytes(), path.stat()
        path.write_bytes(encoded(999))
        assert folder(root, memory_mb=memory).fingerprint != before, path
        path.write_bytes(whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert folder(root, memory_mb=memory).fingerprint == before


def test_a_moved_folder_is_the_same_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = folder(classed(tmp_path / "set"), memory_mb=0).fingerprint
    assert folder((tmp_path / "set").rename(tmp_path / "new"), memory_mb=0).fingerprint == before


def test_files_are_read_once_for_their_digests(tmp_path):
    files = Files(tuple(sorted(classed(tmp_path / "set").rglob("*.png"))))
    first = Contents(files, tmp_path / "cache")
    digests = [first.digest(index) for index in range(len(files))]
    first.save()

    class Unread(Files):
        def open(self, index):
            raise AssertionError("it was read before")

    again = Contents(Unread(files.paths), tmp_path / "cache")
    assert [again.digest(index) for index in range(len(files))] == digests


@pytest.mark.parametrize("replaced", [False, True])
def test_an_exchanged_image_of_equal_size_and_time_is_read_again(tmp_path, replaced):
    path = min(classed(tmp_path / "set").rglob("*.png"))
    files, content, before = Files((path,)), path.read_bytes(), path.stat()
    first = Contents(files, tmp_path / "cache")
    known = first.digest(0)
    first.save()
    place = tmp_path / "other.png" if replaced else path
    place.write_bytes(content[::-1])
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    place.replace(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert Contents(files, tmp_path / "cache").digest(0) != known


def peak_of(work):
    """What ``work`` gives, and the most bytes of Python's and NumPy's that lived at once."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_into_memory_holds_one_copy(tmp_path):
    root = classed(tmp_path / "set", 20, size=(100, 100))
    data, peak = peak_of(lambda: folder(root, workers=1))
    assert isinstance(data.train, TensorSplit)
    assert peak < 1.5 * 40 * 3 * 100 * 100
    storages = {part.images.untyped_storage().data_ptr() for part in (data.train, data.validation)}
    assert len(storages) == 1


@pytest.mark.parametrize("first", [{"size": (8, 8)}, {"mode": "L", "size": (8, 8)}])
def test_large_images_after_a_small_one_are_refused_before_they_are_read(tmp_path, first):
    root = classed(tmp_path / "set", 20, size=(200, 200))
    (root / "bird" / "000.png").write_bytes(encoded(0, **first))

    def refused():
        with pytest.raises(DataError, match=r"2 different sizes .*200x200 \(39\), 8x8 \(1\)"):
            folder(root, workers=1)

    assert peak_of(refused)[1] < 10 * 3 * 200 * 200


@pytest.mark.parametrize(("count", "held"), [(16, True), (18, False)])
def test_memory_is_reckoned_in_colour_where_the_first_image_is_grey(tmp_path, count, held):
    root = classed(tmp_path / "set", count, size=(100, 100))  # of 30 kB each
    (root / "bird" / "000.png").write_bytes(encoded(0, size=(100, 100), mode="L"))
    assert isinstance(folder(root, memory_mb=1).train, TensorSplit) == held


def test_what_is_left_out_moves_no_other_image(tmp_path):
    options = {"normalisation": Normalisation((0.5,) * 3, (0.5,) * 3), "validation": 0.25}
    whole = pixels_of(folder(classed(tmp_path / "whole"), **options))
    root = classed(tmp_path / "set")
    for name in ("bird/0005.png", "nest/1015.png"):
        (root / name).write_bytes(encoded(9, size=(8, 8))[:-30])
    data = folder(root, skip_corrupt=True, **options)
    assert data.skipped == 2
    assert pixels_of(data) == whole


def test_a_holdout_is_a_folder_of_its_own_with_labels_or_without(tmp_path):
    root = classed(tmp_path / "set")
    data = folder(root, holdout=classed(tmp_path / "new", 2))
    assert data.size == {"train": 10, "validation": 2, "test": 0, "holdout": 4}
    assert data.holdout.labelled
    assert data.fingerprint == folder(root).fingerprint
    flat = folder(root, holdout=fill(tmp_path / "flat", 3))
    assert (len(flat.holdout), flat.holdout.labelled, flat.labelled) == (3, False, True)
    assert not folder(root, holdout=tmp_path / "new", labels=False).holdout.labelled
    with pytest.raises(DataError, match="absent: expected a folder of images, none exists"):
        folder(root, holdout=tmp_path / "absent")
    fill(tmp_path / "strange" / "egg", 2)
    with pytest.raises(DataError, match="holdout: classes that train lacks: egg"):
        folder(root, holdout=tmp_path / "strange")


def test_validation_images_of_their_own_are_the_holdout(tmp_path):
    for name in ("train", "val", "test"):
        classed(tmp_path / name, 2)
    data = folder(tmp_path)
    assert data.holdout is data.validation
    classed(tmp_path / "holdout", 3)
    data = folder(tmp_path)
    assert data.size == {"train": 4, "validation": 4, "test": 4, "holdout": 6}
    check_images(data)
