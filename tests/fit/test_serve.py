"""What one target got and another should have: the better student that keeps both limits."""

from dataclasses import replace

from tailorbird.fit.serve import moves
from tailorbird.report.record import Certainty, Session, TargetResult
from tailorbird.targets import Place, Target
from tests.fakes import FakeDevice

BOX, PHONE = (Place(name=name, device=FakeDevice(key=name)) for name in ("box", "phone"))
BASES = {"box": {"latency_ms": 10.0, "params": 100.0}}


def target(name, share, place=BOX, **more):
    return Target(name, place, {"latency": f"{share}x", **more})


def result(name, ms, validation, *, params=50.0, met=True, **changes):
    session = Session(own_ms=2 * ms, reference_ms=20.0, spread_ms=0.1)  # at half the speed
    made = TargetResult(
        name=name,
        device="box",
        limits={"latency_ms": ms + 1},
        measured={"latency_ms": ms, "teacher_latency_ms": 10.0, "params": params},
        met=met,
        certainty=Certainty(sessions=(session, session)),
        validation=validation,
        validation_loss=1 - validation,
        onnx=f"students/{name}/model.onnx",
        minutes=ms,
    )
    return replace(made, **changes)


def taken(*answered):
    return [(move.result.name, move.source) for move in moves(answered, BASES, looks=8)]


def test_a_looser_target_takes_the_better_student_of_a_tighter_one():
    own, better = result("loose", 7.0, 0.8), result("tight", 3.5, 0.9)
    answered = [(target("tight", 0.4), better), (target("loose", 0.8), own)]
    [move] = moves(answered, BASES, looks=8)
    assert (move.source, move.result.name, move.result.found_for) == ("tight", "loose", "tight")
    assert move.result.limits == {"latency_ms": 8.0} and move.result.asked == {"latency_ms": "0.8x"}
    assert move.result.onnx == "students/loose/model.onnx" and move.result.minutes == 7.0
    assert move.result.measured["latency_ms"] == 3.5 and move.result.certainty.margin == 1 - 3.5 / 8


def test_what_is_right_more_often_by_chance_is_not_better():
    lucky = result("tight", 3.5, 0.81, validation_loss=0.3)
    answered = (target("tight", 0.4), lucky), (target("loose", 0.8), result("loose", 7.0, 0.8))
    assert taken(*answered) == []
    old = replace(result("loose", 7.0, 0.8), validation=None, validation_loss=None)
    sure = (target("tight", 0.4), result("tight", 3.5, 0.9))
    assert taken(sure, (target("loose", 0.8), old)) == []


def test_where_images_are_known_by_heart_others_compare():
    knows = result("tight", 3.5, 1.0, compared=0.64)
    own = result("loose", 7.0, 0.96, compared=0.66)
    loose = target("loose", 0.8)
    assert taken((target("tight", 0.4), knows), (loose, own)) == []
    assert taken((target("tight", 0.4), replace(knows, compared=0.67)), (loose, own)) == [
        ("loose", "tight")
    ]
    exact = Target("loose", BOX, {"accuracy": 0.97})
    floors = {"loose": 0.97}
    answered = [(target("tight", 0.4), knows), (exact, replace(own, met=False))]
    [move] = moves(answered, BASES, looks=8, floors=floors)
    assert move.source == "tight", "limits on accuracy are of images as they are"


def test_nobody_takes_what_is_over_a_limit_less_accurate_or_from_elsewhere():
    tight, loose, own = target("tight", 0.4), target("loose", 0.8), result("loose", 7.0, 0.8)
    assert taken((tight, result("tight", 3.5, 0.7)), (loose, own)) == []
    better = result("tight", 3.5, 0.9)
    assert taken((target("tight", 0.4, PHONE), better), (loose, own)) == []
    small = target("small", 0.8, params=40)
    assert taken((tight, better), (small, result("small", 7.0, 0.8, params=30.0))) == []
    assert taken((tight, replace(better, onnx=None)), (loose, own)) == []


def test_of_equally_accurate_students_a_target_keeps_its_own_or_takes_the_fastest():
    tight, loose = target("tight", 0.4), target("loose", 0.8)
    better = (tight, result("tight", 3.5, 0.8))
    assert taken(better, (loose, result("loose", 7.0, 0.8))) == []
    quick = (target("quick", 0.3), result("quick", 2.5, 0.8))
    assert taken(better, quick, (loose, result("loose", 7.0, 0.7))) == [("loose", "quick")]


def test_a_target_without_a_student_of_its_own_takes_anothers():
    tight, loose = target("tight", 0.4), target("loose", 0.8)
    none = TargetResult(name="loose", device="box", limits={}, met=False)
    undecided = result("loose", 8.0, 0.95, met=False, undecided=True)
    for own in (none, undecided):
        assert taken((tight, result("tight", 3.5, 0.5)), (loose, own)) == [("loose", "tight")]


def test_milliseconds_are_as_measured_and_shares_of_the_one_figure():
    """The files took 7 ms in a session at half speed, which is 0.35x and not within 5 ms."""
    share, plain = target("share", 0.4), Target("plain", BOX, {"latency_ms": 5.0})
    slow = result("plain", 4.0, 0.1)
    assert taken((share, result("share", 3.5, 0.9)), (plain, slow)) == []
    wide = Target("plain", BOX, {"latency_ms": 9.0})
    [move] = moves([(share, result("share", 3.5, 0.9)), (wide, slow)], BASES, looks=8)
    assert move.result.measured["latency_ms"] == 7.0
    assert move.result.measured["teacher_latency_ms"] == 20.0


def test_files_are_copied_before_they_are_replaced():
    """The worst off takes the middle one's student, which itself takes the best."""
    best, middle, worst = target("best", 0.6), target("middle", 0.8), target("worst", 0.5)
    found = taken(
        (best, result("best", 5.5, 0.9)),
        (middle, result("middle", 4.5, 0.8)),
        (worst, result("worst", 4.0, 0.7)),
    )
    assert found == [("worst", "middle"), ("middle", "best")]
