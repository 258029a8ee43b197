"""Small made-up predictors and latency tables of a real space, written as the real files are."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tailorbird.estimate.table_keys import STYLES
from tailorbird.supernet.architecture import load_space

SPACE = "compofa-mbv3-w1.2"
RESOLUTIONS = (160, 176)
CLASSES = 1000


def keys(resolution: int, space: str = SPACE) -> list[str]:
    """The rows that a space needs at one resolution, in the Note10's style."""
    slots = load_space(space, resolutions=[resolution]).slots
    shapes = (shape for slot in slots for shape in slot.variants.values() if shape is not None)
    found = (STYLES[0].key(shape, CLASSES) for shape in shapes)
    return sorted({key for key in found if key is not None})


def write_table(folder: Path, *, scale: float = 1.0, left_out: int = 0) -> Path:
    """A folder of YAML files, one per resolution; ``left_out`` rows are missing from the first."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for resolution in RESOLUTIONS:
        rows = [
            f"{key}: {{count: 500, mean: {scale * ms!r}}}"
            for key, ms in zip(keys(resolution), rng.uniform(0.2, 0.8, 1000).tolist(), strict=False)
        ]
        if resolution == RESOLUTIONS[0] and left_out:
            rows = rows[:-left_out]
        (folder / f"{resolution}.yaml").write_text("\n".join(rows) + "\n")
    return folder


def write_predictor(path: Path, *, inputs: int = 128, scale: float = 1.0) -> Path:
    """Random weights in the layout of the published MobileNetV3 predictor."""
    rng = np.random.default_rng(3)
    widths = (inputs, 8, 8, 8, 1)
    tensors = {}
    for layer, (before, after) in enumerate(pairwise(widths)):
        weight = scale * rng.normal(size=(after, before)) / before**0.5
        tensors[f"{2 * layer}.weight"] = weight.astype(np.float32)
        tensors[f"{2 * layer}.bias"] = np.full(after, 0.1, np.float32)
    save_file(tensors, path)
    return path
