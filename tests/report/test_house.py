import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tailorbird.errors import StoreError
from tailorbird.report.house import contents, show_contents
from tests.report.test_record import full


@pytest.fixture
def run(tmp_path: Path) -> Path:
    house = tmp_path / "house"
    (house / "latency").mkdir(parents=True)
    (house / "trained").mkdir()
    alternatives = [
        {
            "name": f"a{n}", "block": "conv..relu", "origin": origin, "source": "x",
            "variant": "whole", "macs": 1000 * n, "params": n, "structure": f"s{n}",
        }
        for n, origin in enumerate(("donor", "identity", "donor", "teacher"))
    ]  # fmt: skip
    block = {"nodes": ["conv", "relu"], "output": "relu", "macs": 9000, "params": 90}
    sample = {"blocks": [block], "alternatives": alternatives, "rejections": {"shape": 7}}
    (house / "sample.json").write_text(json.dumps(sample))
    scores = {"a0": {"accuracy_loss": 0.02}, "a1": {"accuracy_loss": 0.01}}
    (house / "scores.json").write_text(json.dumps(scores))
    for name, extra in {
        "a0": {"relative_error": 0.25, "stopped": None},
        "a2": {"relative_error": None, "stopped": "loss is nan"},
    }.items():
        (house / "trained" / f"{name}.json").write_text(json.dumps({"extra": extra}))
    table = {"device": "cpu", "latencies": {"s0": {"median_ms": 0.5}, "net:a3": {"median_ms": 2}}}
    (house / "latency" / "d.json").write_text(json.dumps(table))
    return tmp_path


def test_states_and_figures_come_from_the_files(run):
    found = contents(run)
    assert [row.state for row in found.rows] == ["scored", "scored", "stopped", "sampled"]
    first = found.rows[0]
    assert (first.error, first.accuracy_loss, first.latency_ms) == (0.25, 0.02, {"cpu": 0.5})
    assert found.rows[3].latency_ms == {"cpu": 2.0}  # a whole network
    assert found.blocks == {"conv..relu": {"macs": 9000, "params": 90}}
    assert json.loads(found.to_json())["rejections"] == {"shape": 7}


def test_best_come_first_and_cuts_are_told(run):
    full().save(run / "report.json")
    stream = io.StringIO()
    show_contents(contents(run), Console(file=stream, width=80), most=2)
    text = stream.getvalue()
    assert "1 blocks of the teacher, 4 alternatives (2 donor, 1 identity, 1 teacher)" in text
    assert text.index("a1 ") < text.index("a0 ")
    assert "a2 " not in text and "2 of 4 alternatives shown" in text
    assert "7 shape" in text and "1 of 1 targets met" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_train_mode_lost_is_told(run):
    line = "outputs that only train mode returns (auxiliary heads) are left out"
    (run / "house" / "notes.json").write_text(json.dumps({"teacher": [line], "donor0": 3}))
    found = contents(run)
    assert json.loads(found.to_json())["notes"] == {"teacher": [line]}
    stream = io.StringIO()
    show_contents(found, Console(file=stream, width=200), most=9)
    assert f"teacher: {line}" in stream.getvalue()


def test_damaged_files_are_told_and_the_rest_is_shown(run):
    (run / "house" / "scores.json").write_text("{")
    (run / "report.json").write_text("[]")
    found = contents(run)
    assert len(found.rows) == 4 and len(found.faults) == 2
    stream = io.StringIO()
    show_contents(found, Console(file=stream, width=200), most=9)
    assert stream.getvalue().count("can't be read") == 2


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        contents(tmp_path / "missing")
    with pytest.raises(StoreError, match="neither a house nor a report"):
        contents(tmp_path)
