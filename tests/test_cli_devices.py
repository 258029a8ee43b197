"""`tailorbird devices check` and `tailorbird measure --device`, through the command line."""

import json
import subprocess
import sys
import textwrap

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tailorbird import cli
from tailorbird.config.device_text import device_called
from tailorbird.errors import ConfigError
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tests.test_target_files import Far

MODULE = """
    from tailorbird.device import Description, Latency
    from tailorbird.errors import MeasurementError

    class Board:
        def __init__(self, ms=2.0, name="board"):
            self.key, self.ms = name, ms
        def measure(self, models):
            return [
                Latency(median_ms=self.ms, spread_ms=0.5, runs=9, warmup=1, drift=0.021)
                for _ in models
            ]
        def describe(self):
            return Description(
                machine="RISC-V board", system="Linux 6.6", runtime="Runtime", version="1.2",
                cores=4, memory_mb=512.0, governor="performance", temperature_c=41.0,
            )

    class Gone(Board):
        def measure(self, models):
            raise MeasurementError("no route to host")
"""
JOB = """
teacher: {model: "nowhere:net", checkpoint: [none]}
data: {kind: folder, root: there-are-no-images}
house: 5
devices:
  - {name: pi, kind: "my_boards:Board", arguments: {ms: 3}, limits: [30]}
targets:
  - {name: edge, device: {kind: "my_boards:Board", arguments: {name: other}}, limits: {macs: 1}}
"""
FLEET = JOB[JOB.index("devices:") :]
GONE = (
    FLEET
    + """  - name: away
    device: {kind: "my_boards:Gone", arguments: {name: gone}}
    limits: {accuracy_loss: 1}
"""
)
SERVER = "targets: [{name: server, device: {threads: 1, runs: 15}, limits: {latency: 0.5x}}]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of devices and two files, and the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_boards.py").write_text(textwrap.dedent(MODULE))
    for name, batch in (("one.onnx", 1), ("many.onnx", 8)):
        values = [
            helper.make_tensor_value_info(value, TensorProto.FLOAT, [batch, 3, 8, 8])
            for value in "xy"
        ]
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]
        )
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / name)
    yield tmp_path
    sys.modules.pop("my_boards", None)


def call(*arguments):
    runner = CliRunner(env={"COLUMNS": "150", "NO_COLOR": "1"})
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def check(folder, text, *more):
    (folder / "job.yaml").write_text(text)
    return call("devices", "check", "job.yaml", "--quiet", *more)


@pytest.mark.parametrize("text", [JOB, FLEET])
def test_devices_of_a_job_are_reached_whatever_else_is_wrong_with_it(here, text):
    done = check(here, text)
    assert done.exit_code == 0, done.output
    assert "2 of 2 devices answer" in done.output
    row = next(line for line in done.output.splitlines() if line.startswith("pi "))
    for part in ("RISC-V board", "Runtime", "4 cores", "float32 3.000 ms"):
        assert part in row
    for part in ("Board", "Linux 6.6", "1.2", "512 MB free", "governor performance", "41 C"):
        assert part in done.output


def test_a_device_that_is_away_has_its_own_code_and_costs_no_other(here):
    done = check(here, GONE)
    assert done.exit_code == 3
    assert "2 of 3 devices answer" in done.output
    assert "away: does not answer: no route to host" in done.output
    assert "float32 3.000 ms" in done.output
    done = check(here, GONE, "--json")
    assert done.exit_code == 3
    pi, edge, away = json.loads(done.stdout)
    assert (pi["name"], pi["key"], pi["answers"]) == ("pi", "board", True)
    assert pi["tried"][0]["latency"]["median_ms"] == 3
    assert pi["description"]["governor"] == "performance" and pi["answered_ms"] >= 0
    assert (edge["name"], edge["key"], away["answers"]) == ("edge", "other", False)
    assert away["fault"] == "no route to host"


def test_this_machine_is_a_device(here):
    done = check(here, SERVER, "--json")
    (found,) = json.loads(done.stdout)
    assert done.exit_code == 0 and found["description"]["cores"] >= 1
    first = found["tried"][0]
    assert first["precision"] == "float32" and first["latency"]["median_ms"] > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "targets:\n  - {name: a, device: {kind: nokind}, limits: {macs: 1}}\n",
            'targets[0].device.kind (line 2): unknown kind "nokind"; known: onnxruntime',
        ),
        ("teacher: x\n", "targets: missing, expected a list with a name"),
        ("space: ofa-mbv3-w1.2\n", "expected the job of a model house or a file of devices"),
        (
            "devices: [{name: phone, latency_table: t, limits: [3]}]\n",
            "targets: none has a device to reach; latency tables measure nothing",
        ),
    ],
)
def test_faults_of_the_devices_themselves_are_told(here, text, said):
    done = check(here, text)
    assert done.exit_code == 2 and said in done.output


def test_help_of_devices_starts_at_once():
    assert "check" in call("devices", "--help").output
    program = (
        "import sys, tailorbird.cli.devices, tailorbird.cli.machine; "
        "print([m for m in ('torch', 'onnxruntime', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert call("devices", "check", "--help").exit_code == 0


# measure -----------------------------------------------------------------------------------------


def test_files_are_timed_on_a_device_of_one_s_own(here):
    done = call("measure", "--device", "my_boards:Board ms=4", "one.onnx", "many.onnx")
    assert done.exit_code == 0, done.output
    title, _, _, one, many = done.output.splitlines()[:5]
    assert title == "board"
    assert one.split() == ["one.onnx", "4.000", "0.5000", "+2.1%", "9", "1", "250"]
    assert many.split() == ["many.onnx", "4.000", "0.5000", "+2.1%", "9", "8", "2.000k"]
    rows = json.loads(call("measure", "--device", "my_boards:Board", "many.onnx", "--json").stdout)
    assert [(row["device"], row["batch"], row["images_per_second"]) for row in rows] == [
        ("board", 8, 4000.0)
    ]


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("onnxruntime runs=15", "onnxruntime"),
        ("onnxruntime 1 runs=15", "onnxruntime"),
        ("job.yaml#edge", "other"),
        ("job.yaml#pi", "board"),
        ("job.yaml#pi-30ms", "board"),
        ("'my_boards:Board' name='a b'", "a b"),
    ],
)
def test_ways_to_name_a_device(here, device, key):
    (here / "job.yaml").write_text(JOB)
    done = call("measure", "--device", device, "one.onnx", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["device"].startswith(key)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["onnxrutime"],
            "--device: unknown kind 'onnxrutime'; did you mean 'onnxruntime'? Or name",
        ),
        (["onnxruntime threds=2"], "--device.threds: unknown key; did you mean 'threads'?"),
        (["onnxruntime threads=two"], '--device.threads: expected a whole number, got "two"'),
        (["onnxruntime threads=0"], "--device: OnnxRuntime: threads must be at least 1, got 0"),
        (["onnxruntime 1 2"], "--device: expected key=value after the kind, got '2'"),
        (["onnxruntime 1 threads=2"], "--device.threads: is given twice"),
        (["onnxruntime", "--threads", "2"], "--threads: expected in --device, such as --device "),
        ([""], "--device: expected a device such as 'onnxruntime threads=2', 'ssh"),
        (["onnxruntime 'x"], "--device: expected a device such as"),
        (["my_boards:Board 5"], "--device: expected key=value after the kind, got '5'"),
        (["my_boards:Bord"], "has no 'Bord'; near matches: Board"),
        (["my_boards:Gone"], "error: no route to host"),
        (["none.yaml#edge"], "none.yaml"),
        (["job.yaml#edg"], "job.yaml has no target or device 'edg'; did you mean 'edge'?"),
        (
            ["table.yaml#phone"],
            "'phone' of table.yaml has only a latency table; nothing runs there",
        ),
    ],
)
def test_faults_of_a_device_are_those_of_a_job_file(here, options, said):
    (here / "job.yaml").write_text(JOB)
    (here / "table.yaml").write_text("devices: [{name: phone, latency_table: t, limits: [3]}]\n")
    done = call("measure", "--device", *options, "one.onnx")
    assert done.exit_code == 2 and said in done.output, done.output


def test_a_line_says_what_a_section_would(tmp_path):
    kinds = {"far": Far, "onnxruntime": OnnxRuntime}

    def called(text):
        return device_called(text, folder=tmp_path, kinds=kinds)

    assert called("far pi@raspberry") == Far(host="pi@raspberry")
    assert called("far threads=4 host=7 runtime=null") == Far(host="7", runtime="null", threads=4)
    assert called("far 10.0.0.1 keys=my/key") == Far(host="10.0.0.1", keys=tmp_path / "my" / "key")
    assert called("far '[::1]' keys=null") == Far(host="[::1]")
    with pytest.raises(ConfigError) as caught:
        called("far threads=2.5 nothing=1")
    assert set(caught.value.problems) == {
        "--device.host: missing, expected text",
        "--device.threads: expected a whole number, got 2.5",
        "--device.nothing: unknown key; known: kind, runtime, latency_table, batch, precision, "
        "host, keys, threads",
    }
