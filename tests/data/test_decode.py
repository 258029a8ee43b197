"""Decoding: every size of photograph, deep images, and files that claim too much."""

import io
import os
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tailorbird.data.decode import Decoder, cover, covering_box
from tailorbird.data.parquet import parquet
from tailorbird.errors import DataError
from tests.data.makers import encoded

SIDE = st.integers(1, 5000)


@given(height=SIDE, width=SIDE, size=st.tuples(SIDE, SIDE))
@example(height=308, width=500, size=(160, 160))
@example(height=333, width=500, size=(224, 224))
@example(height=98, width=98, size=(64, 64))
@example(height=1, width=5000, size=(384, 384))
def test_the_part_that_is_cut_lies_within_the_image(height, width, size):
    left, top, right, bottom = covering_box((height, width), size)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    # Proportions are those asked for, and no larger part has them.
    assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0], rel=1e-9)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(1)
    assert left == pytest.approx(width - right, abs=1e-6)
    assert top == pytest.approx(height - bottom, abs=1e-6)


@pytest.mark.parametrize("target", [64, 160, 224])
def test_every_size_goes_through(target):
    for height in range(1, 500, 7):
        for width in (1, 98, 333, 500):
            shape = cover(np.zeros((1, height, width), np.uint8), (target, target)).shape
            assert shape == (1, target, target)


def saved(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


GREY = np.linspace(0.1, 0.9, 64).reshape(8, 8)


@pytest.mark.parametrize(
    "content",
    [
        saved((GREY * 65535).astype(np.uint16), "PNG"),
        saved((GREY * 65535).astype(np.uint16), "TIFF"),
        saved(GREY.astype(np.float32), "TIFF"),
        b"P5\n8 8\n65535\n" + (GREY * 65535).astype(">u2").tobytes(),
    ],
    ids=["png of 16 bits", "tiff of 16 bits", "floats", "pgm of 16 bits"],
)
def test_deep_images_are_scaled_by_their_range(content):
    pixels = Decoder()(content)
    assert pixels.shape == (1, 8, 8)
    np.testing.assert_allclose(pixels[0] / 255, GREY, atol=1 / 255)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ((GREY * 65535).astype(np.int32), "32-bit integers of unknown range; convert it"),
        ((GREY * 300).astype(np.float32), "floats from 30 to 270, expected 0 to 1; convert it"),
        (np.full((8, 8), np.nan, np.float32), "expected 0 to 1"),
    ],
    ids=["integers", "large floats", "not a number"],
)
def test_an_unknown_range_is_refused(array, words):
    with pytest.raises(ValueError, match=words):
        Decoder()(saved(array, "TIFF"))


def bomb(width, height):
    """A PNG of a few bytes whose header claims so many pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(10_000))
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", packed), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [15_000, 100_000])
def test_what_claims_too_many_pixels_is_not_unpacked(side):
    with pytest.raises(ValueError, match="claims more than 200 million pixels; scale it down"):
        Decoder()(bomb(side, side))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "pipe.png"])
def test_a_table_names_no_files_elsewhere(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encoded(0))
    home = tmp_path / "set"
    home.mkdir()
    os.mkfifo(home / "pipe.png")
    (home / "own.png").write_bytes(encoded(1))
    cells = [{"bytes": None, "path": "own.png"}] * 9 + [{"bytes": None, "path": path}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), home / "train.parquet")
    for memory in (100, 0):
        with pytest.raises(DataError, match=r"1 corrupt image: .*(leads out of|no such file)"):
            parquet(home / "train.parquet", memory_mb=memory or 1, label_column=None)
