"""Small image files for the tests of sources."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(number)
    shape = size if mode == "L" else (*size, 3)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8))


def encoded(number, size=(8, 8), mode="RGB", kind="PNG"):
    stream = io.BytesIO()
    picture(number, size, mode).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def fill(folder, count, start=0, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:03}.png").write_bytes(encoded(number, **options))
    return folder


def write_table(path, images, labels=None, names=None, image="img", label="label"):
    cells = [
        {"bytes": one, "path": f"{i}.png"} if one is not None else None
        for i, one in enumerate(images)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(cells, kind)}
    features = {image: {"_type": "Image"}}
    if labels is not None:
        columns[label] = pa.array(labels)
        if names is not None:
            features[label] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns)
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(meta), path)
    return path
