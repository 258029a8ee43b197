import io
from itertools import combinations

import pytest
from matplotlib.image import imread

from tailorbird.report import plot
from tailorbird.report.record import Point, RunReport, TargetResult


def point(name: str, latency: float | None, accuracy: float | None, device: str = "cpu") -> Point:
    return Point(
        name=name,
        latency_ms=latency,
        accuracy=accuracy,
        params=1,
        macs=1000,
        size_mb=1.0,
        device=device,
    )


def target(name: str, latency: float, before: float, after: float) -> TargetResult:
    return TargetResult(
        name=name,
        device="cpu",
        limits={"latency_ms": latency * 1.01},
        measured={"latency_ms": latency, "macs": 500.0},
        met=True,
        accuracy=after,
        accuracy_before=before,
    )


@pytest.fixture
def crowded() -> RunReport:
    return RunReport(
        run="r",
        seed=0,
        teacher={"cpu": point("teacher", 1.5, 0.94)},
        donors=tuple(point(f"resnet{n}", 0.5 + n / 50, 0.90 + n / 1000) for n in (5, 6, 7, 20)),
        targets=tuple(
            target(f"target-{n}", 0.5 + n / 12, 0.5 + n / 30, 0.92 + n / 500) for n in range(6)
        ),
    )


def test_labels_of_a_crowded_run_do_not_overlap(crowded):
    figure = plot.picture(crowded)
    axes = figure.axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"teacher", "resnet5", "target-0", "target-5"} <= set(boxes)
    clashes = [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert clashes == []
    for name, box in boxes.items():
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1, name


def test_a_student_far_below_does_not_press_the_rest_together(crowded):
    figure = plot.picture(crowded)
    low, high = figure.axes[0].get_ylim()
    assert low > 80 and high < 100
    assert "50 %" in [text.get_text() for text in figure.axes[0].texts]


def test_one_panel_per_device():
    teachers = {name: point("teacher", 1.0, 0.9, name) for name in ("cpu", "phone $x_1$")}
    donors = (point("d", 0.5, 0.8, "cpu"),)
    report = RunReport(run="r", seed=0, teacher=teachers, donors=donors)
    figure = plot.picture(report)
    assert [axes.get_title() for axes in figure.axes] == ["cpu", "phone $x_1$"]
    assert [len(axes.texts) for axes in figure.axes] == [2, 1]


def test_macs_stand_in_where_nothing_was_timed():
    report = RunReport(run="r", seed=0, teacher={"cpu": point("名前 $", None, 0.9)})
    assert imread(io.BytesIO(plot.png(report))).shape[2] == 4
    assert "multiply" in plot.picture(report).axes[0].get_xlabel()


def test_a_run_without_results_still_draws(tmp_path):
    path = plot.front(RunReport(run="r", seed=0), tmp_path / "front.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_one_network_alone_gets_a_scale():
    alone = RunReport(run="r", seed=0, teacher={"cpu": point("teacher", 1.5, 0.94)})
    figure = plot.picture(alone)
    low, high = figure.axes[0].get_ylim()
    assert 2 <= high - low <= 3
