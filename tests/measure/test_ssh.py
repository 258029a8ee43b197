import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tailorbird.device import OPENVINO
from tailorbird.errors import ConfigError, ExportError, MeasurementError
from tailorbird.export.onnx import export_many
from tailorbird.measure.answering import run_onnx
from tailorbird.measure.devices import remote_script
from tailorbird.measure.devices.remote import room
from tailorbird.measure.devices.ssh import Ssh
from tailorbird.measure.devices.ssh_transport import SshTransport, why
from tailorbird.measure.openvino import openvino
from tailorbird.testing import check_device
from tests.measure.loopback import interpreter, server
from tests.measure.test_onnxruntime import network


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    def convolutions(depth):
        return nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(depth)])

    folder = tmp_path_factory.mktemp("models")
    networks = [(convolutions(depth), (16, 16, 16)) for depth in (1, 2, 8)]
    return export_many(networks, folder, ["one", "two", "eight"])


def device(sshd, host="good", **settings):
    given = {"python": sys.executable, "config": sshd.config, "runs": 15, **settings}
    return Ssh(host=host, **given)


# what it does -----------------------------------------------------------------------------------


def test_it_keeps_to_the_contract_and_leaves_nothing(sshd, files):
    check_device(device(sshd), files)
    assert sshd.left() == []


def test_openvino_runs_and_times_its_own_files_there(sshd, files):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    library = openvino()
    networks = [file.with_suffix(".xml") for file in (files[0], files[2])]
    for file in (files[0], files[2]):
        made = library.Core().read_model(file)
        library.save_model(made, file.with_suffix(".xml"), compress_to_fp16=False)
    vino = device(sshd, runtime="openvino")
    assert vino.format == OPENVINO
    small, large = vino.measure(networks)
    assert 0 < small.median_ms < large.median_ms
    images = np.random.default_rng(0).standard_normal((3, 16, 16, 16), dtype=np.float32)
    np.testing.assert_allclose(
        vino.run(networks[1], images), run_onnx(files[2], images), rtol=1e-3, atol=1e-4
    )
    networks[0].with_suffix(".bin").unlink()
    with pytest.raises(MeasurementError, match=r"one.bin: there is no such file"):
        vino.measure(networks)


def test_it_describes_itself_whatever_a_login_says(sshd):
    import onnxruntime

    told = device(sshd, "talks").describe()
    assert (told.runtime, told.version) == ("ONNX Runtime", onnxruntime.__version__)
    assert told.cores == len(os.sched_getaffinity(0))
    assert told.memory_mb > 1


def test_its_key_asks_nobody_and_tells_settings_apart():
    keys = {
        Ssh(host="nowhere.invalid").key,
        Ssh(host="nowhere.invalid", threads=2).key,
        Ssh(host="me@nowhere.invalid").key,
        Ssh(host="nowhere.invalid", runtime="openvino").key,
        Ssh(host="nowhere.invalid", python="venv/bin/python").key,
    }
    assert len(keys) == 5
    assert Ssh(host="nowhere.invalid", runs=5).key in keys


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=reboot", "me@-x", "-", "", "a b", "a;b", "a$(b)", "a\nb", "@a", "a@", "ä" * 3],
)
def test_a_host_is_no_option_and_no_command(host):
    with pytest.raises(ConfigError, match=r"host .* is none, expected a name or user@name"):
        Ssh(host=host)


def test_all_wrong_settings_are_listed():
    with pytest.raises(ConfigError) as error:
        Ssh(
            host="-x",
            runtime="tflite",
            threads=0,
            python="python3; reboot",
            provider="-p",
            config=Path("there-is-none"),
            connect_s=0,
            most_mb=0,
            warmup=-1,
            runs=0,
            seconds=float("nan"),
        )
    assert len(error.value.problems) == 11


# hosts that can't be used -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("stranger", "host key is not known here, so nothing was sent; compare .* ssh stranger"),
        ("changed", "host key has changed since .* ssh-keygen -R changed"),
        ("closed", "it refuses connections .* name its Port"),
        ("denied", "no key of this user is let in .* ssh-copy-id denied"),
        ("breaks", "the connection was lost .* run the same command again"),
        ("tampers", "remote_script.py arrived there with another SHA-256 .* nothing was run"),
        ("lies", "is no answer of the script"),
    ],
)
def test_a_host_that_can_not_be_used_says_why(sshd, host, words):
    with pytest.raises(MeasurementError, match=f"^ssh {host}: .*{words}"):
        device(sshd, host).describe()
    assert sshd.left() == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ssh: Could not resolve hostname pi: Name or service not known", "no host of this name"),
        ("ssh: connect to host pi port 22: Connection timed out", "not answer within 20 s"),
        ("ssh: connect to host pi port 22: No route to host", "not answer within 20 s"),
        ("/c: line 1: Bad configuration option: hots", "configuration of ssh can't be used"),
        ("client_loop: send disconnect: Broken pipe", "the connection was lost"),
        ("", "the connection was lost"),
    ],
)
def test_what_ssh_says_is_understood(said, words):
    assert words in why(said, "pi", 20)


def test_ssh_itself_may_be_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeasurementError, match=r"no program 'ssh' .* install the OpenSSH client"):
        Ssh(host="pi").describe()


def test_a_call_that_does_not_end_is_given_up(sshd):
    transport = SshTransport("good", sshd.config, 1)
    with pytest.raises(MeasurementError, match=r"ssh good did not end within 1.2 s"):
        transport.call(["sleep", "60"], limit_s=0.2)


def test_an_answer_is_bounded(sshd):
    with pytest.raises(MeasurementError, match="more than 100,000 bytes"):
        SshTransport("good", sshd.config, 9).call(
            ["cat", "/dev/zero"], limit_s=60, most_bytes=10**5
        )


def test_arguments_reach_the_device_as_they_are(sshd):
    odd = "a 'b' \"c\" $HOME `d` \\ *"
    answer = SshTransport("good", sshd.config, 9).call(["printf", "%s", odd], limit_s=60)
    assert answer.out.decode() == odd


# disks and memory -------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_told(sshd, files):
    with pytest.raises(MeasurementError, match="files can't be copied: its disk is full"):
        device(sshd, "full").measure(files)
    assert sshd.left() == []


def test_files_are_compared_with_what_is_free_before_they_are_copied(sshd, files):
    (sshd.fakes / "df").write_text("#!/bin/sh\necho /dev/a 100 99 1 99% /\n")
    (sshd.fakes / "df").chmod(0o755)
    with pytest.raises(MeasurementError, match=r"MB are to be copied and 0.0 MB are free in /"):
        device(sshd, "crowded").measure(files)
    with pytest.raises(MeasurementError, match=r"one.onnx \(.* MB\) is over the memory that is"):
        device(sshd, "forgetful").measure(files[:1])
    assert sshd.left() == []


# what a host has to have ------------------------------------------------------------------------


def test_a_host_without_python_says_so(sshd):
    with pytest.raises(MeasurementError, match=r"there is no 'python-none' .* Python 3.8 or later"):
        device(sshd, python="python-none").describe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('none here')", "can't be imported by .*none here.*pip install 'onnxr"),
        ("__version__ = '1.4.0'", "onnxruntime there is 1.4.0, expected 1.18 or later"),
        ("raise SyntaxError('x')", "Python 3.8 or later, give its path as python"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL.* another processor"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL.* too much memory"),
        ("raise MemoryError", "a network is over the memory that is free there"),
    ],
)
def test_a_host_whose_runtime_fails_says_how(sshd, tmp_path, text, words):
    python = interpreter(tmp_path, "onnxruntime", text=text)
    with pytest.raises(MeasurementError, match=words):
        device(sshd, python=str(python)).describe()
    assert sshd.left() == []


def test_a_provider_that_is_not_there_is_told(sshd, files):
    wanted = device(sshd, provider="CUDAExecutionProvider")
    assert "float16" in wanted.precisions
    with pytest.raises(
        MeasurementError, match=r"not available there; choose one of .*CPUExecution"
    ):
        wanted.measure(files[:1])


def test_every_file_that_can_not_be_run_is_named(sshd, files, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[0].read_bytes()[:500])
    two = network(tmp_path / "two-inputs.onnx", (1, 2), inputs=2)
    with pytest.raises(MeasurementError) as error:
        device(sshd).measure([files[0], damaged, two])
    assert "damaged.onnx: CPUExecutionProvider of ssh good can't run it" in str(error.value)
    assert (
        "two-inputs.onnx: CPUExecutionProvider of ssh good can't run it: expected one input, "
        in (str(error.value))
    )
    assert str(files[0]) not in str(error.value)
    with pytest.raises(ExportError, match=r"one.onnx: CPUExecutionProvider of .* can't run it"):
        device(sshd).run(files[0], np.zeros((2, 16, 8, 8), np.float32))


# the script -------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path, files):
    """Starts the script in a folder of its own, with a request."""
    folder = tmp_path / "tailorbird-device-0123456789"
    folder.mkdir()
    copy = folder / "remote_script.py"
    copy.write_bytes(Path(remote_script.__file__).read_bytes())
    (folder / "0.onnx").write_bytes(files[0].read_bytes())
    started = []

    def start(**request):
        process = subprocess.Popen(
            [sys.executable, copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        common = {"word": "w", "threads": 1, "provider": "CPUExecutionProvider", "seed": 0}
        line = json.dumps({**common, "runtime": "onnxruntime", **request})
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        return process, folder

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_the_script_ends_and_removes_its_folder_when_it_is_left_alone(script):
    process, folder = script(do="run", limit_s=600, files=["0.onnx"], images=[2, 16, 16, 16])
    process.stdin.close()
    assert process.wait(60) == 3
    assert not folder.exists()


def test_the_script_is_for_older_pythons_too():
    text = Path(remote_script.__file__).read_text()
    ast.parse(text, feature_version=(3, 8))
    with pytest.raises(SyntaxError):
        ast.parse(f"{text}\nmatch 1:\n    case 1: pass\n", feature_version=(3, 8))
    assert "tailorbird." not in "".join(line for line in text.splitlines() if "import" in line)


def test_the_script_ends_by_itself_when_its_time_is_over(script):
    # It waits for images that never come.
    process, folder = script(do="run", limit_s=1.0, files=["0.onnx"], images=[2, 16, 16, 16])
    assert process.wait(60) == 3
    assert not folder.exists()


def test_a_host_is_left_clean_when_whoever_asked_is_killed(sshd, files):
    code = f"""
from pathlib import Path
from tailorbird.measure.devices.ssh import Ssh
Ssh(host="notes", python={sys.executable!r}, config=Path({str(sshd.config)!r}), runs=10**6).measure(
    [Path({str(files[0])!r})]
)
"""
    asking = subprocess.Popen([sys.executable, "-c", code])
    started = sshd.fakes / "started"
    assert _soon(lambda: started.exists() or asking.poll() is not None)
    assert asking.poll() is None
    asking.kill()
    asking.wait()
    assert _soon(lambda: sshd.left() == [])


def _soon(holds):
    """Whether something holds within two minutes."""
    return any(holds() or time.sleep(0.05) for _ in range(2400))


def test_folders_that_lost_connections_left_are_removed_after_a_day(sshd):
    old, young = (sshd.temporary / f"tailorbird-device-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with room(SshTransport("good", sshd.config, 9)) as there:
        assert sshd.left() == sorted([young.name, Path(there.path).name])
        assert Path(there.path).stat().st_mode & 0o777 == 0o700
    young.rmdir()
    assert sshd.left() == []
