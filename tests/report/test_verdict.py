from dataclasses import replace

from tailorbird.report.page import page
from tailorbird.report.record import Point, RunReport, TargetResult
from tailorbird.report.verdict import as_good, hint, verdict
from tests.report.test_table import printed

EDGE = TargetResult(
    name="edge",
    device="cpu",
    limits={"latency_ms": 2.0, "params": 600.0},
    asked={"latency_ms": "0.5x"},
    measured={"latency_ms": 1.6, "params": 500.0, "teacher_latency_ms": 4.0},
    met=True,
    accuracy=0.9,
    teacher_accuracy=0.92,
    onnx="students/edge/model.onnx",
)


def point(name, latency_ms, accuracy, params=400, device="cpu"):
    return Point(
        name=name, latency_ms=latency_ms, accuracy=accuracy, params=params, macs=1, size_mb=1.0,
        device=device,
    )  # fmt: skip


def report(target, *donors):
    teacher = point("teacher", 4.0, 0.92, params=1000)
    return RunReport(
        run="/home/somebody/runs/pets", seed=0, targets=(target,), donors=donors,
        teacher={"cpu": teacher}, judged=400, images="test images",
    )  # fmt: skip


def test_what_to_ship_its_speed_and_the_error_of_its_accuracy():
    # 1.96 * sqrt((0.9 * 0.1 + 0.92 * 0.08) / 400) = 0.0396
    assert verdict(report(EDGE), EDGE) == (
        "ship students/edge/model.onnx: 1.600 of 2.000 ms (0.5x), 500 of 600 params, "
        "2.5x faster than the teacher, -2.00 +- 3.96 points on 400 test images"
    )


def test_a_student_that_is_not_faster_is_not_called_so():
    slow = replace(EDGE, measured={**EDGE.measured, "teacher_latency_ms": 1.65})
    assert "as fast as the teacher" in verdict(report(slow), slow)


def test_what_is_not_met_says_why():
    missed = replace(EDGE, met=False, reason="nothing is that fast", lowest={"latency_ms": 0.17})
    said = verdict(report(missed), missed)
    assert said == "not met: nothing is that fast; lowest reachable: 0.1700 ms"


def test_a_donor_that_keeps_all_limits_and_is_no_worse_is_named():
    worse, big = point("worse", 1.0, 0.89), point("big", 1.0, 0.95, params=601)
    slow, there = point("slow", 2.1, 0.95), point("there", 1.0, 0.95, device="gpu")
    unknown = point("unknown", None, 0.95)
    assert as_good(report(EDGE, worse, big, slow, there, unknown), EDGE) is None
    best = point("best", 2.0, 0.91)
    run = report(EDGE, point("equal", 1.0, 0.9), best, point("heavier", 2.0, 0.905))
    assert as_good(run, EDGE) == best
    assert hint(run, EDGE).startswith("best as it is keeps this limit too, with 91.00 % where")


def test_a_donor_that_is_shipped_as_it_is_is_named_once():
    shipped, best = replace(EDGE, as_is="equal"), point("best", 2.0, 0.91)
    run = report(shipped, point("equal", 1.6, 0.9))
    assert ", equal as it is, " in verdict(run, shipped) and not hint(run, shipped)
    assert hint(report(shipped, best), shipped).endswith("91.00 % where equal has 90.00 %")


def test_a_limit_that_no_network_as_it_is_is_known_to_keep_names_none():
    memory = replace(EDGE, limits={"peak_memory_mb": 3.0})
    assert as_good(report(memory, point("small", 1.0, 0.99)), memory) is None


def test_terminal_and_page_say_it_without_the_machines_paths():
    run = report(EDGE, point("best", 2.0, 0.91))
    shown = " ".join(" ".join(printed(run, 80)).split())
    for text in (shown, page(run)):
        assert "2.5x faster than the teacher" in text
        assert "best as it is keeps this limit too" in text
        assert "/home/somebody" not in text
    assert "<h1>Tailorbird: pets</h1>" in page(run)


SURE = replace(
    EDGE,
    limits={"latency_ms": 2.0},
    least={"accuracy": 0.9},
    asked={"latency_ms": "images_per_second >= 500", "accuracy": "accuracy_loss <= 2"},
    measured={"latency_ms": 1.6, "accuracy": 0.91},
)


def test_limits_that_say_at_least():
    assert verdict(report(SURE), SURE).startswith(
        "ship students/edge/model.onnx: 1.600 of 2.000 ms (images_per_second >= 500), "
        "91.00 of at least 90.00 % (accuracy_loss <= 2)"
    )
    for width in (80, 120):
        lines = printed(report(SURE), width)
        number = next(n for n, line in enumerate(lines) if line.startswith("edge"))
        assert "2.000 ms" in lines[number] and "1.600" in lines[number]
        assert ">= 90.00 %" in lines[number + 1] and "91.00" in lines[number + 1]
    assert "at least 90.00 % (accuracy_loss &lt;= 2)" in page(report(SURE))
    low = replace(SURE, met=False, measured={"latency_ms": 2.6, "accuracy": 0.89})
    said = "not met: 2.600 ms measured, limit 2.000, 89.00 % measured, at least 90.00 wanted"
    assert verdict(report(low), low) == said
    assert RunReport.from_json(report(SURE).to_json()) == report(SURE)


def test_where_an_accuracy_is_asked_for_a_slower_network_is_no_alternative():
    fast, slow = point("fast", 1.5, 0.95), point("slow", 1.7, 0.95)
    only = replace(SURE, limits={})
    assert as_good(report(only, slow), only) is None
    assert as_good(report(only, slow, fast), only) == fast
    assert as_good(report(EDGE, slow), EDGE) == slow
