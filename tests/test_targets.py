import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import ConfigError
from tailorbird.targets import METRICS, Limit, Target
from tests.fakes import FakeDevice

POSITIVE = st.floats(1e-6, 1e9)


@given(st.sampled_from(METRICS), POSITIVE, POSITIVE)
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
            {"speed": 1, "params": -1, "latency": "0.5x", "latency_ms": 3.0},
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "the name becomes a folder" in text
    assert "unknown metric 'speed'; give one of latency_ms, macs" in text
    assert "limit params: expected a positive number" in text
    assert "'latency' already limits the same figure" in text
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
