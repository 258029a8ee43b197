import re

import pytest
from torch import nn

from tailorbird.device import ONNX
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.export.onnx import export_many
from tailorbird.measure.devices.adb import ROUNDS, Adb
from tailorbird.measure.guarded import answering, format_of
from tailorbird.testing import check_device
from tests.measure.fake_adb import phone


@pytest.fixture
def device(tmp_path, monkeypatch):
    return phone(tmp_path / "device", monkeypatch)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    def convolutions(depth):
        return nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth)])

    folder = tmp_path_factory.mktemp("models")
    networks = [(convolutions(depth), (16, 16, 16)) for depth in (1, 2, 8)]
    return export_many(networks, folder, ["one", "two", "eight"])


def adb(device, **settings):
    return Adb(binary=str(device.binary), folder=str(device.folder), **settings)


# what it does -----------------------------------------------------------------------------------


def test_it_keeps_to_the_contract_and_leaves_nothing(device, files):
    check_device(adb(device, threads=2), files)
    assert device.left() == []


def test_what_is_timed_are_the_runs_after_those_that_warm_up(device, files):
    (latency,) = adb(device, runs=30, warmup=5).measure(files[:1])
    seconds = files[0].stat().st_size * 1e-7
    assert latency.runs == 30
    assert latency.median_ms == pytest.approx(seconds * 1e3 * 1.01, rel=1e-3)
    assert latency.spread_ms == pytest.approx(seconds * 1e3 * 0.02, rel=1e-2)
    calls = (device.root / "calls").read_text()
    assert calls.count("-m times -r 10 -x 1 -y 1 -e cpu -o 99") == ROUNDS


def test_files_take_turns(device, files):
    adb(device, runs=6).measure(files)
    calls = (device.root / "calls").read_text()
    rounds = re.findall(r"'(\d \d \d)' env ORT_DISABLE_TELEMETRY=1 LD_LIBRARY_PATH", calls)
    assert len(rounds) == ROUNDS
    assert {tuple(sorted(one.split())) for one in rounds} == {("0", "1", "2")}
    assert len(set(rounds)) > 1


def test_answers_are_those_of_this_machine(device):
    assert answering(adb(device)) is None
    assert format_of(adb(device)) == ONNX
    assert adb(device).precisions == ("float32", "int8")


def test_it_describes_itself(device):
    told = adb(device, serial="R58M12").describe()
    assert told.machine == "Acme Phone 3 arm64-v8a"
    assert told.system == "Android 14"
    assert told.runtime == "onnxruntime_perf_test"
    assert told.version.startswith("SHA-256 ")
    assert told.cores == 8
    assert told.memory_mb > 1
    assert "slowed down by heat, thermal status 2" in told.governor
    assert device.left() == []


def test_its_key_asks_nobody_and_tells_settings_apart():
    keys = {Adb().key, Adb(serial="a").key, Adb(threads=2).key, Adb(binary="/b").key}
    assert len(keys) == 4
    assert Adb(runs=5).key in keys


def test_all_wrong_settings_are_listed():
    with pytest.raises(ConfigError) as error:
        Adb(
            serial="-s",
            binary="perf test",
            provider="tpu",
            folder="/a;reboot",
            threads=0,
            most_mb=0,
            warmup=-1,
            runs=0,
            seconds=float("nan"),
        )
    assert len(error.value.problems) == 9


# devices that can't be used ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "serial", "words"),
    [
        ({}, None, "it is not connected .* USB debugging"),
        ({"a": "device"}, "b", r"not connected \(connected: a\)"),
        ({"a": "device", "b": "device"}, None, "2 devices are connected; give the serial of one"),
        ({"a": "unauthorized"}, None, "has not allowed this computer .* accept the question there"),
        ({"a": "offline"}, "a", "it does not answer .* plug it in again"),
        ({"a": "no permissions (missing udev rules?)"}, "a", "may not use its USB port .* udev"),
        ({"a": "recovery"}, "a", "it is not started up"),
    ],
)
def test_a_device_that_is_not_ready_says_why(device, states, serial, words):
    device.states(**states)
    with pytest.raises(MeasurementError, match=words):
        adb(device, serial=serial).describe()


def test_adb_itself_may_be_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeasurementError, match=r"no program 'adb' .* platform tools"):
        Adb().describe()


def test_a_device_that_goes_away_midway_is_told(device, files):
    device.does("leaves", "6")
    with pytest.raises(MeasurementError, match=r"^adb R58M12: the connection was lost .*not found"):
        adb(device).measure(files)


def test_a_connection_that_breaks_without_a_word_is_told(device, files):
    device.does("breaks")
    with pytest.raises(MeasurementError, match=r"connection was lost .* run the same command agai"):
        adb(device).measure(files)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("full", "files can't be copied: its disk is full .* free some space there"),
        ("changes", "0.onnx arrived there with another SHA-256 than was sent, so nothing was run"),
    ],
)
def test_files_that_do_not_arrive_are_told(device, files, flag, words):
    device.does(flag)
    with pytest.raises(MeasurementError, match=words):
        adb(device).measure(files[:1])
    assert device.left() == []


# programs that can't be used --------------------------------------------------------------------


def test_a_program_that_is_not_there_is_told(device):
    device.binary.unlink()
    with pytest.raises(MeasurementError, match=r"there is no /.* adb push onnxruntime_perf_test"):
        adb(device).describe()


def test_a_program_that_can_not_be_executed_is_told(device):
    device.binary.chmod(0o644)
    with pytest.raises(MeasurementError, match=r"can't be executed; .* chmod 755"):
        adb(device).describe()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xff\xfe", "one that is built for its proce"),
        (
            b"#!/bin/sh\necho 'CANNOT LINK EXECUTABLE: no libo.so' >&2; exit 1\n",
            "put its libraries",
        ),
        (b"#!/bin/sh\nkill -ILL $$\n", "can't run it: it was ended by SIGILL.* another processor"),
        (b"#!/bin/sh\nkill -KILL $$\n", "SIGKILL, .* takes too much memory"),
        (b"#!/bin/sh\nfor last; do :; done; echo nan,nan,1,1,0 > $last\n", "are no 25 times"),
        (b"#!/bin/sh\nfor last; do :; done; echo a,0.1,1,1,0 > $last\n", "are no 25 times"),
    ],
)
def test_a_program_that_fails_is_told(device, files, program, words):
    device.binary.write_bytes(program)
    with pytest.raises(MeasurementError, match=f"one.onnx: adb R58M12.*{words}"):
        adb(device).measure(files[:1])
    assert device.left() == []


def test_a_file_that_can_not_be_run_is_named(device, files, tmp_path):
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\xff" * 300)
    with pytest.raises(MeasurementError, match=r"noise.onnx: adb R58M12 .*Protobuf parsing failed"):
        adb(device).measure([files[0], noise])
    with pytest.raises(MeasurementError, match=r"xnnpack is not supported in this build"):
        adb(device, provider="xnnpack").measure(files[:1])
