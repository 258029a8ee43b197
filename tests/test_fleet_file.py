"""Fleet files: read as written, all faults at once with their lines."""

import pytest

from tailorbird.config.fleet import load_fleet, plain_fleet, read_limits
from tailorbird.errors import ConfigError

GOOD = """
devices:
  - name: phone
    latency_table: tables/phone
    limits: [15, 20.5]
  - name: board
    latency_table: board.yaml
    limits:
      - {latency_ms: 40, macs: 300e6}
      - params: 5e6
"""


def fleet(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return load_fleet(path)


def test_limits_keep_their_order_and_latencies_name_their_device(tmp_path):
    found = fleet(tmp_path, GOOD)
    assert found.tables == {
        "phone": tmp_path / "tables" / "phone",
        "board": tmp_path / "board.yaml",
    }
    assert found.bounds() == [
        {"latency_ms@phone": 15.0},
        {"latency_ms@phone": 20.5},
        {"latency_ms@board": 40.0, "macs": 300e6},
        {"params": 5e6},
    ]
    assert plain_fleet(tmp_path, read_limits("20,15,20")).bounds() == [
        {"latency_ms": 20.0},
        {"latency_ms": 15.0},
        {"latency_ms": 20.0},
    ]


def test_all_faults_are_told_at_once(tmp_path):
    text = """
devices:
  - name: phone
    latency_table: t
    limits: [15, -2, {latncy_ms: 3}, {}]
  - name: phone
    limits: [7]
    colour: red
  - name: a@b
    limits: []
"""
    with pytest.raises(ConfigError) as caught:
        fleet(tmp_path, text)
    said = str(caught.value)
    for part in (
        "devices[0].limits[1] (line 5): expected a positive number, got -2",
        "unknown metric; did you mean 'latency_ms'?",
        "devices[0].limits[3] (line 5): no limit; give one of latency_ms, macs, params",
        "'phone' is given twice",
        "devices[1].colour (line 8): unknown key",
        "a latency limit needs device 'phone' to have latency_table",
        "'a@b' has to be text without '@'",
        "expected a list of limits such as [15, 20], got an empty list",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("devices: []", "expected a list of devices, got an empty list"),
        ("device: x", "unknown key; did you mean 'devices'?"),
        ("devices: [{name: a}]", "devices[0].limits (line 1): missing"),
        ("devices: [{name: a, limits: .nan, latency_table: t}]", "expected a list of limits"),
    ],
)
def test_faulty_files(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        fleet(tmp_path, text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "15,,20", "15;20", "0", "-3", "nan", "inf"])
def test_limits_on_the_command_line_are_positive_numbers(text):
    with pytest.raises(ConfigError, match="--limits: expected positive numbers"):
        read_limits(text)


def test_a_device_without_a_table_is_never_given_another_one_s_latency(tmp_path):
    text = """
devices:
  - {name: phone, latency_table: t, limits: [15]}
  - {name: board, limits: [{macs: 3e8}]}
"""
    assert fleet(tmp_path, text).bounds() == [{"latency_ms@phone": 15.0}, {"macs": 3e8}]
