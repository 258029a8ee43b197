"""Fleet files for making students: runtimes, shares, names, and all faults at once."""

import pytest

from tailorbird.config.measured_fleet import load_measured_fleet
from tailorbird.errors import ConfigError
from tailorbird.measure.onnxruntime import OnnxRuntime
from tailorbird.targets import Limit

GOOD = """
devices:
  - name: server
    limits: [4, 0.5x, {latency_ms: 0.6x, macs: 100e6, params: 2000000}]
  - name: edge box
    runtime: onnxruntime
    threads: 2
    runs: 30
    latency_table: tables/edge.yaml
    limits: [9]
  - name: phone
    latency_table: tables/phone
    limits: [15]
"""


def fleet(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return load_measured_fleet(path)


def test_a_device_is_a_runtime_a_table_or_both(tmp_path):
    found = fleet(tmp_path, GOOD)
    assert found.devices["server"].device == OnnxRuntime(threads=1)
    assert found.devices["server"].table is None
    edge = found.devices["edge box"]
    assert edge.device == OnnxRuntime(threads=2, runs=30)
    assert edge.table == tmp_path / "tables" / "edge.yaml"
    assert found.devices["phone"].device is None
    assert found.devices["phone"].key == f"table {tmp_path / 'tables' / 'phone'}"
    assert [wish.name for wish in found.wanted] == [
        "server-4ms",
        "server-0.5x",
        "server-0.6x-100Mmacs-2Mparams",
        "edge-box-9ms",
        "phone-15ms",
    ]
    assert found.wanted[1].limits == (Limit("latency_ms", 0.5, share=True),)
    assert found.wanted[2].limits[1] == Limit("macs", 100e6)


def test_all_faults_are_told_at_once(tmp_path):
    text = """
devices:
  - name: a
    limits: [-1, 0x, 3ms, {latncy_ms: 3}, {}]
  - name: a
    threads: 0
    limits: [7]
  - name: b
    runtime: tensorrt
    limits: []
  - name: c
    latency_table: t
    threads: 4
"""
    with pytest.raises(ConfigError) as caught:
        fleet(tmp_path, text)
    said = str(caught.value)
    for part in (
        "devices[0].limits[0] (line 4): expected a positive number or a share of the full network",
        "devices[0].limits[1] (line 4): expected a positive number",
        'expected a number, or a share such as 0.5x, got "3ms"',
        "unknown metric; did you mean 'latency_ms'?",
        "no limit; give one of latency_ms, macs, params",
        "devices[1].name (line 5): 'a' is given twice",
        "threads must be at least 1, got 0",
        'unknown runtime "tensorrt"; known: onnxruntime',
        "expected a list of limits such as [15, 0.5x], got an empty list",
        "devices[3].threads (line 13): unknown key",
        "devices[3].limits (line 11): missing",
    ):
        assert part in said, part
