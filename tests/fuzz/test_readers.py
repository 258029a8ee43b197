"""Whatever a file holds, reading it ends in an answer or in one error of Tailorbird's own.

``make fuzz`` tries thousands of mutations of each file, the gate a few.
"""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tailorbird.checkpoints import load_weights
from tailorbird.config.house_job import check
from tailorbird.config.reader import read_file
from tailorbird.config.run_data import load_data_file
from tailorbird.config.supernet_job import check_job
from tailorbird.config.targets import load_targets
from tailorbird.data.folder import folder
from tailorbird.data.parquet import parquet
from tailorbird.device import OPENVINO
from tailorbird.errors import TailorbirdError
from tailorbird.estimate.latency_table import read_table
from tailorbird.estimate.predictor_files import open_predictor, read_pairs
from tailorbird.export.bundle import load_student
from tailorbird.export.exporters import exporter_for
from tailorbird.fit.answers import Answers
from tailorbird.house.store import HouseStore
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.measure.latencies import Latencies
from tailorbird.report.house import contents
from tailorbird.report.record import RunReport
from tailorbird.runfolder import RunFolder
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.store import load_supernet
from tests.fuzz.mutations import damaged, json_lines, json_texts, yaml_texts
from tests.marks import WITH_OPENVINO
from tests.reference.record import HERE, HOUSE, SPACE, SUPERNET, write_predictor

EXAMPLES = int(os.environ.get("TAILORBIRD_FUZZ", "12"))
HANGS_AFTER = 60
"""Seconds: what takes as long counts as never ending."""

FLEET = {
    "devices": [
        {"name": "box", "threads": 1, "limits": ["0.8x", {"latency_ms": 2, "params": "0.9x"}, 3]},
        {"name": "phone", "latency_table": "table.yaml", "limits": [0.5]},
    ],
    "targets": [{"name": "edge", "device": {"kind": "onnxruntime"}, "limits": {"macs": 1e6}}],
}
TABLE = {
    "Conv-input:160x160x3-output:80x80x24": {"mean": 1.5, "count": 10},
    "expanded_conv-input:80x80x24-output:40x40x32-expand:72-kernel:5-stride:2-idskip:0-se:0-hs:1": {
        "mean": 0.5
    },
}
PAIR = {"ks": [3, 5], "e": [2, 3], "d": [2], "r": 32, "top1": 71.5}
REQUEST = "0" * 16


@dataclass(frozen=True)
class Reader:
    """A file in a folder, how it is mutated, and what reads it."""

    file: str
    mutate: Callable[[bytes], st.SearchStrategy[bytes]]
    read: Callable[[Path], object]


READERS: Mapping[str, Reader] = {
    "job": Reader("job.yaml", yaml_texts, lambda at: check(read_file(at / "job.yaml"), folder=at)),
    "supernet job": Reader(
        "super.yaml", yaml_texts, lambda at: check_job(read_file(at / "super.yaml"), folder=at)
    ),
    "fleet": Reader("fleet.yaml", yaml_texts, lambda at: load_targets(at / "fleet.yaml")),
    "data": Reader("data.yaml", yaml_texts, lambda at: load_data_file(at / "data.yaml")),
    "space": Reader("small.json", json_texts, lambda at: load_space(str(at / "small.json"))),
    "latency table, YAML": Reader(
        "table.yaml", yaml_texts, lambda at: read_table(at / "table.yaml")
    ),
    "latency table, JSON": Reader(
        "table.json", json_texts, lambda at: read_table(at / "table.json")
    ),
    "predictor": Reader(
        "predictor.safetensors",
        damaged,
        lambda at: open_predictor(at / "predictor.safetensors", load_space("ofa-mbv3-w1.2")),
    ),
    "trained predictor": Reader(
        "supernet/run/fit/predictor.safetensors",
        damaged,
        lambda at: open_predictor(
            at / "supernet/run/fit/predictor.safetensors",
            load_supernet(at / "supernet/run/supernet").architectures,
        ),
    ),
    "pairs": Reader(
        "pairs.jsonl",
        json_lines,
        lambda at: read_pairs(at / "pairs.jsonl", load_space(str(at / "small.json"))),
    ),
    "weights": Reader("weights.pth", damaged, lambda at: load_weights(net(), at / "weights.pth")),
    "student, record": Reader(
        "house/run/students/edge/student.json",
        json_texts,
        lambda at: load_student(at / "house/run/students/edge"),
    ),
    "student, weights": Reader(
        "house/run/students/edge/student.safetensors",
        damaged,
        lambda at: load_student(at / "house/run/students/edge"),
    ),
    "report": Reader(
        "house/run/report.json",
        json_texts,
        lambda at: RunReport.load(at / "house/run/report.json"),
    ),
    "sample": Reader(
        "house/run/house/sample.json",
        json_texts,
        lambda at: (HouseStore(at / "house/run/house").load_sample(), contents(at / "house/run")),
    ),
    "scores": Reader(
        "house/run/house/scores.json",
        json_texts,
        lambda at: (HouseStore(at / "house/run/house").load_scores(), contents(at / "house/run")),
    ),
    "trained alternative": Reader(
        "house/run/house/trained/a0004.json",
        json_texts,
        lambda at: (
            HouseStore(at / "house/run/house").load_trained("a0004"),
            contents(at / "house/run"),
        ),
    ),
    "latencies": Reader(
        "house/run/house/latency/b5d54c39e666.json",
        json_texts,
        lambda at: (
            Latencies(at / "house/run/house/latency", "fake").known,
            contents(at / "house/run"),
        ),
    ),
    "result": Reader(
        "house/run/students/edge/result.json",
        json_texts,
        lambda at: Answers(at / "house/run").student("edge", REQUEST),
    ),
    "choice": Reader(
        "house/run/students/edge/choice.json",
        json_texts,
        lambda at: Answers(at / "house/run").student("edge", REQUEST),
    ),
    "events": Reader(
        "house/run/events.jsonl", json_lines, lambda at: RunFolder(at / "house/run").seconds()
    ),
    "supernet, space": Reader(
        "supernet/run/supernet/space.json",
        json_texts,
        lambda at: load_supernet(at / "supernet/run/supernet"),
    ),
    "supernet, weights": Reader(
        "supernet/run/supernet/weights.safetensors",
        damaged,
        lambda at: load_supernet(at / "supernet/run/supernet"),
    ),
    "images": Reader("images/a/0.png", damaged, lambda at: folder(at / "images", image_size=8)),
    "photographs": Reader(
        "photographs/a/0.jpg", damaged, lambda at: folder(at / "photographs", image_size=8)
    ),
    "parquet": Reader("train.parquet", damaged, lambda at: parquet(at / "train.parquet")),
    "ONNX": Reader(
        "house/run/students/edge/model.onnx",
        damaged,
        lambda at: OnnxRuntime(threads=1).measure([at / "house/run/students/edge/model.onnx"]),
    ),
}

ONE_IMAGE = np.zeros((1, 3, 6, 6), np.float32)

IN_OPENVINO: Mapping[str, Reader] = {
    name: Reader(file, damaged, lambda at: OpenVino().run(at / "int8.xml", ONE_IMAGE))
    for name, file in (("OpenVINO, graph", "int8.xml"), ("OpenVINO, weights", "int8.bin"))
}
if WITH_OPENVINO:
    READERS = {**READERS, **IN_OPENVINO}


def net() -> torch.nn.Module:
    """Whose weights are read."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file as it should be."""
    at = tmp_path_factory.mktemp("whole")
    with zipfile.ZipFile(HERE / "first_edition.zip") as kept:
        kept.extractall(at)
    for name, content in (
        ("job", {**HOUSE, "targets": FLEET["targets"]}),
        ("super", SUPERNET),
        ("fleet", FLEET),
        ("data", {"data": SUPERNET["data"]}),
        ("table", TABLE),
    ):
        (at / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (at / "small.json").write_text(json.dumps(SPACE))
    (at / "table.json").write_text(json.dumps(TABLE))
    (at / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR) + "\n")
    write_predictor(at / "predictor.safetensors")
    if WITH_OPENVINO:
        exporter_for(OPENVINO, "int8").quick([(net(), (3, 6, 6))], at, ["int8"])
    torch.save({"state_dict": net().state_dict(), "epoch": 3}, at / "weights.pth")
    results = at / "house/run/students/edge/result.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "request": REQUEST}))
    rng = np.random.default_rng(0)
    rows = []
    for kind, suffix in (("images", "png"), ("photographs", "jpg")):
        for number in range(8):
            path = at / kind / "ab"[number % 2] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(path)
            rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "label": number % 2})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), at / "train.parquet")
    return at


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Stop what doesn't end."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not at an end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_what_is_whole_is_read(whole, name):
    READERS[name].read(whole)


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
def test_what_is_damaged_is_an_answer_or_one_error(whole, name, data):
    reader = READERS[name]
    path = whole / reader.file
    content = path.read_bytes()
    path.write_bytes(data.draw(reader.mutate(content)))
    try:
        with within(HANGS_AFTER):
            reader.read(whole)
    except TailorbirdError as error:
        assert str(error).strip()
    finally:
        path.write_bytes(content)
