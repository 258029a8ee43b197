import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import ConfigError
from tailorbird.targets import (
    ACCURACY,
    LATENCY,
    LOSS,
    METRICS,
    Limit,
    Place,
    Target,
    places_of,
    unsearchable,
)
from tests.fakes import FakeDevice

POSITIVE = st.floats(1e-6, 1e9)


PLAIN = [metric for metric in METRICS if metric not in (ACCURACY, LOSS)]


@given(st.sampled_from(PLAIN), POSITIVE, POSITIVE)
def test_absolute_and_share(metric, value, teacher):
    assert Limit.parse(metric, value) == Limit(metric, value)
    assert Limit.parse(metric, value).absolute({metric: teacher}) == value
    share = Limit.parse(metric, f"{value:.6f}x")
    assert share.share
    assert share.absolute({metric: teacher}) == pytest.approx(round(value, 6) * teacher)


@pytest.mark.parametrize("text", ["0.5x", " 0.5 x ", ".5x"])
def test_spellings_of_a_share(text):
    assert Limit.parse("latency", text) == Limit("latency_ms", 0.5, True)


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, "fast", "x", "0x", "-0.5x", "1e-3 s", True, None, [1]]
)
def test_not_a_positive_number(value):
    with pytest.raises(ConfigError, match="expected a positive number or a share of the teacher"):
        Limit.parse("params", value)


def test_an_alias_needs_a_unit_where_the_limit_is_absolute():
    with pytest.raises(ConfigError, match=r"an absolute limit needs its unit, write 'size_mb: 3'"):
        Limit.parse("size", 3)
    assert str(Limit.parse("size", "0.25x")) == "size_mb <= 0.25x teacher"
    assert str(Limit.parse("params", "1200")) == "params <= 1200"


def test_a_target_lists_all_its_faults():
    with pytest.raises(ConfigError) as caught:
        Target(
            "../edge",
            FakeDevice(),
            {"speed": 1, "params": -1, "latency": "0.5x", "latency_ms": 3.0, "accuracy": 97},
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "the name becomes a folder" in text
    assert "unknown metric 'speed'; give one of latency_ms, macs" in text
    assert "limit params: expected a positive number" in text
    assert "'latency' already limits the same figure" in text
    assert "limit accuracy: expected a share of right answers up to 1, such as 0.97" in text
    with pytest.raises(ConfigError, match="no limits; give at least one, such as latency"):
        Target("edge", FakeDevice(), {})


@given(st.text(max_size=120))
def test_a_name_that_is_accepted_stays_inside_its_folder(name):
    try:
        Target(name, FakeDevice(), {"params": 1})
    except ConfigError:
        return
    assert name.isascii()
    assert not set(name) & set("/\\\0\n :")
    assert name.strip(".")


def test_bounds_of_several_limits():
    target = Target("t", FakeDevice(), {"latency": "0.5x", "params": 100, "size_mb": "2x"})
    teacher = {"latency_ms": 8.0, "params": 1000.0, "size_mb": 0.25}
    assert target.absolute(teacher) == {"latency_ms": 4.0, "params": 100.0, "size_mb": 0.5}


FULL = {"latency_ms": 40.0, "macs": 3e8}


@pytest.mark.parametrize(
    ("limits", "batch", "absolute", "asked"),
    [
        ({"images_per_second": 500}, 1, {LATENCY: 2.0}, {LATENCY: "images_per_second >= 500"}),
        ({"images_per_second": 500}, 8, {LATENCY: 16.0}, {LATENCY: "images_per_second >= 500"}),
        ({"throughput": "2x"}, 8, {LATENCY: 20.0}, {LATENCY: "images_per_second >= 2x"}),
        (
            {"latency_ms": 5, "throughput": "2x"},
            1,
            {LATENCY: 5.0},
            {LATENCY: "latency_ms <= 5, images_per_second >= 2x"},
        ),
        (
            {"latency": "0.75x", "images_per_second": 50, "macs": 1e8},
            1,
            {LATENCY: 20.0, "macs": 1e8},
            {LATENCY: "latency_ms <= 0.75x, images_per_second >= 50"},
        ),
        ({"latency": "0.5x"}, 1, {LATENCY: 20.0}, {LATENCY: "0.5x"}),
        ({"accuracy": 0.97}, 1, {}, {}),
        ({"accuracy": "0.99x"}, 1, {}, {ACCURACY: "0.99x"}),
        ({"accuracy_loss": 1}, 1, {}, {ACCURACY: "accuracy_loss <= 1"}),
    ],
)
def test_what_is_asked_for_as_bounds_from_above(limits, batch, absolute, asked):
    target = Target("t", Place(device=FakeDevice(), batch=batch), limits)
    assert target.absolute(FULL) == absolute
    assert target.shares == asked
    tighter = target.latency(FULL)
    assert (None if tighter is None else tighter.absolute(FULL)) == absolute.get(LATENCY)


def test_the_tighter_bound_on_a_latency_says_whether_it_is_a_share():
    target = Target("t", FakeDevice(), {"latency_ms": 15, "throughput": "2x"})
    assert target.latency({LATENCY: 40.0}) == Limit(LATENCY, 15)
    assert target.latency({LATENCY: 20.0}) == Limit(LATENCY, 0.5, share=True)


@pytest.mark.parametrize(
    ("limits", "least"),
    [
        ({"macs": 1}, None),
        ({"accuracy": 0.9}, 0.9),
        ({"accuracy": "0.5x"}, 0.4),
        ({"accuracy_loss": 0}, 0.8),
        ({"accuracy_loss": 2.5}, 0.775),
        ({"accuracy_loss": 2.5, "accuracy": 0.79, "latency_ms": 3}, 0.79),
    ],
)
def test_the_least_accuracy(limits, least):
    assert Target("t", FakeDevice(), limits).accuracy(0.8) == pytest.approx(least)


@pytest.mark.parametrize("value", [-1, 100, "0.5x", "x", math.nan, True, None])
def test_no_loss_of_accuracy(value):
    with pytest.raises(
        ConfigError, match=r"limit accuracy_loss: expected points of accuracy, 0 or"
    ):
        Limit.parse("accuracy_loss", value)


@pytest.mark.parametrize("value", [0, 1.01, 97, "0x", "much", math.inf])
def test_no_accuracy(value):
    with pytest.raises(ConfigError, match=r"share of right answers up to 1, such as 0\.97, or a"):
        Limit.parse("accuracy", value)


def test_words_of_limits():
    assert str(Limit.parse("throughput", "2x")) == "images_per_second >= 2x teacher"
    assert str(Limit.parse("accuracy", 0.97)) == "accuracy >= 0.97"
    assert str(Limit.parse("accuracy_loss", "1.5")) == "accuracy_loss <= 1.5"
    with pytest.raises(ConfigError, match="needs its unit, write 'images_per_second: 500'"):
        Limit.parse("throughput", 500)


def test_other_batches_are_other_places():
    server = Place(name="server", device=FakeDevice())
    plain = Place(device=FakeDevice())
    many = [server, server.batched(8), server.batched(16), plain, plain.batched(8)]
    places = places_of([Target(f"t{n}", place, {"macs": 1}) for n, place in enumerate(many)])
    assert list(places) == ["server", "server batch 8", "server batch 16", "fake", "fake, batch 8"]
    assert places["server batch 8"].key == places["fake, batch 8"].key == "fake, batch 8"
    assert server.batched(8).batched(8) == server.batched(8)
    assert plain.batched(8) == Place(device=FakeDevice(), batch=8)
    assert server.batched(8).at("int8").name == "server batch 8 int8"
    for wrong in (0, 5000, 2.5, True):
        with pytest.raises(ConfigError, match="batch: expected 1 to 4096 images, got"):
            Place(device=FakeDevice(), batch=wrong)


def test_a_table_is_of_one_batch(tmp_path):
    place = Place(name="phone", table=tmp_path / "t.yaml", batch=8)
    assert place.batched(8) is place
    with pytest.raises(ConfigError, match="latency table of 'phone' is of calls of 8 images; give"):
        place.batched(1)


def test_a_search_keeps_all_limits_but_accuracies():
    assert [metric for metric in METRICS if unsearchable(metric)] == [ACCURACY, LOSS]
