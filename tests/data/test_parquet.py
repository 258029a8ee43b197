import os
import time
from pathlib import Path

import pytest
import torch

from tailorbird.data.images import TensorSplit
from tailorbird.data.loader import LoaderSplit
from tailorbird.data.parquet import parquet
from tailorbird.errors import DataError
from tailorbird.task import check_head
from tests.data.makers import encoded, write_table

IMAGES = [encoded(number) for number in range(12)]
LABELS = [0, 1, 2] * 4
NAMES = ["ant", "bee", "cat"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_hub_layout_is_understood(tmp_path, kind):
    images = [encoded(number, kind=kind) for number in range(12)]
    write_table(tmp_path / "data" / "train-0.parquet", images[:6], LABELS[:6], NAMES)
    write_table(tmp_path / "data" / "train-1.parquet", images[6:], LABELS[6:], NAMES)
    write_table(tmp_path / "data" / "test-0.parquet", images[:3], LABELS[:3], NAMES)
    data = parquet(tmp_path, validation=0.25)
    assert data.classes == tuple(NAMES)
    assert data.size == {"train": 9, "validation": 3, "test": 3}
    assert data.input_shape == (3, 8, 8)
    plain = write_table(tmp_path / "png.parquet", IMAGES, LABELS, NAMES)
    again = parquet(plain, test=tmp_path / "data" / "test-0.parquet", validation=0.25)
    assert data.sampled == again.sampled  # the same pixels, in other files
    assert (data.fingerprint == again.fingerprint) == (kind == "PNG")


def test_columns_by_type_by_name_or_as_told(tmp_path):
    path = write_table(tmp_path / "a.parquet", IMAGES, LABELS, image="picture", label="fine_label")
    data = parquet(path, validation=0.25)
    assert data.labelled
    assert data.classes is None
    with pytest.raises(DataError, match="holds label 2 but the network has 2"):
        check_head(data, 2)
    assert not parquet(path, label_column=None).labelled
    with pytest.raises(DataError) as caught:
        parquet(path, image_column="fine_label", label_column="kind")
    assert "image_column 'fine_label' does not hold images; columns that may: ['picture']" in str(
        caught.value
    )
    assert "label_column 'kind' does not hold" in str(caught.value)


def test_names_as_labels(tmp_path):
    labels = [NAMES[i] for i in LABELS]
    path = write_table(tmp_path / "a.parquet", IMAGES, labels)
    data = parquet(path, validation=0.25)
    assert data.classes == tuple(NAMES)
    assert sorted(data.train.labels.tolist()) == [0] * 3 + [1] * 3 + [2] * 3


def test_paths_beside_the_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": None, "path": f"{i}.png"} for i in range(12)]
    for index, content in enumerate(IMAGES):
        (tmp_path / f"{index}.png").write_bytes(content)
    pq.write_table(pa.table({"image": cells, "label": LABELS}), tmp_path / "a.parquet")
    inside = write_table(tmp_path / "b.parquet", IMAGES, LABELS)
    beside = parquet(tmp_path / "a.parquet", validation=0.25)
    assert beside.fingerprint == parquet(inside, validation=0.25).fingerprint
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 corrupt image: .*a\.parquet row 3 \(3\.png\)"):
        parquet(tmp_path / "a.parquet")


def test_faults_of_images_and_labels_come_together(tmp_path):
    images = [*IMAGES[:10], b"no image", None]
    labels = [*LABELS[:10], 7, -1]
    path = write_table(tmp_path / "a.parquet", images, labels, NAMES)
    with pytest.raises(DataError) as caught:
        parquet(path)
    text = str(caught.value)
    assert "2 labels out of range (expected 0 to 2" in text
    assert "row 10 (10.png): 7" in text
    assert "2 corrupt images" in text
    assert "row 11: neither bytes nor a path" in text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "absent.parquet", "no parquet file here"),
        (lambda p: p, "no parquet file here"),
        (lambda p: [], "no parquet files given"),
        (lambda p: p / "x-*.parquet", "no parquet file here"),
        (lambda p: (p / "a.parquet").write_bytes(b"PAR1") and p, "not a readable parquet file"),
        (lambda p: write_table(p / "a.parquet", []), "train: no images"),
        (lambda p: write_table(p / "a.parquet", IMAGES, [-1] * 12, NAMES), "no image has a label"),
        (lambda p: write_table(p / "a.parquet", IMAGES, [1] * 12, NAMES), "are of one class"),
    ],
)
def test_wrong_files(tmp_path, make, words):
    with pytest.raises(DataError, match=words):
        parquet(make(tmp_path))


def test_a_table_beyond_the_memory_budget_is_refused(tmp_path):
    path = write_table(tmp_path / "a.parquet", IMAGES, LABELS)
    with pytest.raises(DataError, match="more than memory_mb: 0; raise memory_mb"):
        parquet(path, memory_mb=0)


def test_more_than_one_label_column_has_to_be_chosen(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"img": IMAGES, "label": LABELS, "fine_label": LABELS})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns may hold the labels: .*set label_column"):
        parquet(tmp_path / "a.parquet")
    assert parquet(tmp_path / "a.parquet", label_column="label", validation=0.25).labelled


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_loads_in_seconds():
    root = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not (root / "cifar10").is_dir():
        pytest.skip(f"real data missing: no folder cifar10 in TAILORBIRD_DATA ({root})")
    start = time.process_time()
    data = parquet(root / "cifar10", crop_padding=4, flip=True)
    assert time.process_time() - start < 30
    assert data.size == {"train": 45_000, "validation": 5_000, "test": 10_000}
    assert data.classes[0] == "airplane"
    assert data.train.labels.bincount().tolist() == [4500] * 10
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack(
        [x.mean((0, 2, 3)) for x, _ in data.train.batches(1000, generator=generator)]
    )
    expected = (torch.tensor([0.4914, 0.4822, 0.4465]) - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(mean.mean(0), expected, atol=0.01, rtol=0)


def test_a_table_with_paths_is_read_for_each_batch_where_memory_is_short(tmp_path):
    images = [encoded(number % 3, size=(200, 200)) for number in range(12)]
    path = write_table(tmp_path / "train.parquet", images, [n % 2 for n in range(12)], NAMES[:2])
    held, streamed = (parquet(path, memory_mb=size) for size in (100, 2))
    assert isinstance(held.train, TensorSplit) and isinstance(streamed.train, LoaderSplit)
    assert streamed.fingerprint == held.fingerprint


def test_equal_cells_count_as_often_as_they_stand(tmp_path):
    image = encoded(1, size=(100, 100))
    path = write_table(tmp_path / "a.parquet", [image] * 400, [0, 1] * 200)
    whole = 400 * len(image)
    assert path.stat().st_size < whole / 50
    assert parquet(path, memory_mb=2 * whole // 10**6, workers=1).size["train"] == 360
    with pytest.raises(DataError, match="equal cells make a lot of parquet data, more than memory"):
        parquet(path, memory_mb=whole // 2 // 10**6)
    other = write_table(tmp_path / "b.parquet", [image] * 400, [0, 1] * 200)
    with pytest.raises(DataError, match="equal cells make a lot of parquet data, more than memory"):
        parquet([path, other], memory_mb=whole * 3 // 2 // 10**6)


def test_holdout_files_by_name_or_as_told_and_without_labels(tmp_path):
    for name in ("train", "test", "holdout"):
        write_table(tmp_path / "all" / f"{name}-0.parquet", IMAGES, LABELS, NAMES)
    assert parquet(tmp_path / "all").size["holdout"] == 12
    plain = write_table(tmp_path / "plain.parquet", IMAGES[:5])
    train = tmp_path / "all" / "train-0.parquet"
    data = parquet(train, holdout=plain, validation=0.25)
    assert (len(data.holdout), data.holdout.labelled, data.labelled) == (5, False, True)
    with pytest.raises(DataError, match=r"nothing\.parquet: no parquet file here"):
        parquet(train, holdout=tmp_path / "nothing.parquet")
