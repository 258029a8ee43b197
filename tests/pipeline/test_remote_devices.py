"""A job whose device goes away: its targets wait, others go on, the same job continues there."""

from dataclasses import replace

from tailorbird.measure.devices.adb import Adb
from tailorbird.targets import Target
from tests.measure.fake_adb import phone
from tests.pipeline.makers import DEVICE, job, run_job, small


def test_a_phone_that_is_unplugged_midway_waits_until_it_is_back(tmp_path, monkeypatch):
    device = phone(tmp_path / "phone", monkeypatch)
    asked = job(tmp_path / "run", sessions=2)
    asked = replace(asked, options=small(asked.options))
    adb = Adb(binary=str(device.binary), folder=str(device.folder), runs=6, warmup=0)
    bounds = {"latency": "1.5x", "params": "0.95x"}
    edge = Target("edge", DEVICE, {"macs": "0.99x"})
    wanted = replace(asked, targets=(Target("phone", adb, bounds), edge))
    run_job(wanted, until="house")
    device.does("leaves", "50")  # calls later, while networks are timed
    first = run_job(wanted)
    unplugged, edge = first.targets
    assert edge.met and not unplugged.met and not first.met
    assert "adb R58M12: the connection was lost" in unplugged.reason
    assert "plugged in and awake, then run the same command again" in unplugged.reason
    calls = (device.root / "calls").read_text().count("onnxruntime_perf_test")
    assert calls, "it went away before anything was timed"
    (device.root / "leaves").unlink()
    device.states(R58M12="device")
    again = run_job(wanted)
    assert again.met
    assert again.targets[0].measured["latency_ms"] > 0
    assert again.targets[1].measured == edge.measured
