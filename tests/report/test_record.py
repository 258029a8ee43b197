import json

import pytest

from tailorbird.errors import StoreError
from tailorbird.report.record import Point, RunReport, StageCost, TargetResult


def full() -> RunReport:
    teacher = Point(name="teacher", latency_ms=1.5, accuracy=0.94, params=1, macs=2, size_mb=0.1)
    return RunReport(
        run="runs/a",
        seed=3,
        teacher={"cpu": teacher},
        donors=(Point(name="d", latency_ms=None, accuracy=None, params=1, macs=1, size_mb=1.0),),
        targets=(
            TargetResult(
                name="edge",
                device="cpu",
                limits={"latency_ms": 2.0},
                measured={"latency_ms": 1.9},
                met=True,
                accuracy=0.93,
                accuracy_before=0.91,
                teacher_accuracy=0.94,
                onnx="students/edge/model.onnx",
                replaced=("a..b -> c",),
            ),
        ),
        stages=(StageCost(name="distil", minutes=1.25, detail="4 alternatives"),),
        rejections={"shape": 4},
        environment={"torch": "2", "cores": 2},
    )


def test_round_trip_and_promised_keys(tmp_path):
    report = full()
    report.save(tmp_path / "deep" / "report.json")
    assert RunReport.load(tmp_path / "deep" / "report.json") == report
    target = json.loads(report.to_json())["targets"][0]
    assert {"name", "limits", "measured", "met", "accuracy", "teacher_accuracy", "onnx"} <= set(
        target
    )


def test_figures_that_are_not_finite_stay_valid_json():
    nan = float("nan")
    point = Point(name="t", latency_ms=nan, accuracy=nan, params=1, macs=1, size_mb=1.0)
    result = TargetResult(
        name="a", device="d", limits={"params": 1.0}, met=False, lowest={"params": float("inf")}
    )
    text = RunReport(run="r", seed=0, teacher={"d": point}, targets=(result,)).to_json()
    assert "NaN" not in text and "Infinity" not in text
    back = RunReport.from_json(text)
    assert back.teacher["d"].accuracy is None and back.targets[0].lowest == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Invalid JSON"),
        ('{"run": "a"}', "seed: Field required"),
        ('{"run": "a", "seed": 0, "format": 99}', "layout version 99"),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, says):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=says) as caught:
        RunReport.load(path)
    assert "report.json" in str(caught.value)
