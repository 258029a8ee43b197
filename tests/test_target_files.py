"""Devices and targets in YAML: one language for jobs, fits and searches."""

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tailorbird.config.devices import own_fields
from tailorbird.config.house_job import check
from tailorbird.config.reader import read
from tailorbird.config.sections import Faults
from tailorbird.config.targets import DEVICES as DEVICE_KINDS
from tailorbird.config.targets import load_fleet, load_targets, read_targets
from tailorbird.errors import ConfigError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.measure.devices.ssh import Ssh
from tailorbird.targets import Limit, places_of

DEVICES = """
devices:
  - name: server
    limits: [4, 0.5x, {latency_ms: 0.6x, macs: 100e6, params: 2000000}]
  - name: edge box
    runtime: onnxruntime
    threads: 2
    runs: 30
    latency_table: tables/edge.yaml
    limits: [9, {size_mb: 4, peak_memory: 0.5x}]
  - name: phone
    latency_table: tables/phone
    limits: [15]
"""
TARGETS = """
targets:
  - {name: one, limits: {latency: 0.5x}}
  - {name: two, device: onnxruntime, limits: {macs: 1e8, size: 0.5x}}
  - {name: four, device: {threads: 4}, limits: {latency_ms: 3}}
"""
JOB = """
teacher: {model: "tailorbird.demo:digits_net", train: {epochs: 1}}
data: digits
"""
TABLES = """
devices:
  - {name: phone, latency_table: phone.yaml, limits: [15, 0.5x]}
  - {name: board, latency_table: board.yaml}
targets:
  - {name: pocket, device: board, limits: {latency_ms: 9, macs: 3e8}}
  - {name: counted, limits: {params: 5e6}}
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder for files and a module with a device beside them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_clock.py").write_text(
        textwrap.dedent(
            """
            class Clock:
                def __init__(self, tick=1.0):
                    self.key = f"clock {tick}"
                def measure(self, models):
                    return []
            class Halted:
                key = "halted"
            """
        )
    )
    yield tmp_path
    sys.modules.pop("my_clock", None)


def fit(folder, text):
    path = folder / "targets.yaml"
    path.write_text(text)
    return load_targets(path)


def search(folder, text):
    path = folder / "targets.yaml"
    path.write_text(text)
    return load_targets(path, needs="table")


def run(folder, text):
    return check(read(JOB + text), folder=folder).targets.targets


COMMANDS = {"run": run, "fit": fit, "search": search}


def faults(command, folder, text):
    with pytest.raises(ConfigError) as caught:
        command(folder, text)
    return str(caught.value)


def test_a_place_is_a_device_a_table_or_both(tmp_path):
    found = fit(tmp_path, DEVICES)
    places = places_of(found)
    assert places["server"].device == OnnxRuntime(threads=1)
    assert places["server"].table is None
    assert places["edge box"].device == OnnxRuntime(threads=2, runs=30)
    assert places["edge box"].table == tmp_path / "tables" / "edge.yaml"
    assert places["phone"].device is None
    assert places["phone"].key == f"table {tmp_path / 'tables' / 'phone'}"
    assert [target.name for target in found] == [
        "server-4ms",
        "server-0.5x",
        "server-0.6x-100Mmacs-2Mparams",
        "edge-box-9ms",
        "edge-box-4size_mb-0.5xpeak_memory_mb",
        "phone-15ms",
    ]
    assert found[1].limits == (Limit("latency_ms", 0.5, share=True),)
    assert found[2].limits[1] == Limit("macs", 100e6)


@pytest.mark.parametrize("command", ["run", "fit"])
def test_targets_with_devices_of_their_own(tmp_path, command):
    one, two, four = COMMANDS[command](tmp_path, TARGETS)
    assert [target.name for target in (one, two, four)] == ["one", "two", "four"]
    assert one.place is two.place  # equal devices are one place
    assert one.place.name == one.device.key
    assert four.device == OnnxRuntime(threads=4)
    assert four.limits == (Limit("latency_ms", 3.0),)


@pytest.mark.parametrize("command", COMMANDS)
def test_both_forms_go_together_in_every_command(tmp_path, command):
    kind = "latency_table: a.yaml, kind: onnxruntime"
    text = f"""
devices:
  - {{name: box, {kind}, limits: [7]}}
  - {{name: spare, {kind}, threads: 2}}
targets:
  - {{name: small, device: spare, limits: {{latency: 0.4x, size_mb: 3}}}}
  - {{name: own, device: {{{kind}}}, limits: {{latency_ms: 2}}}}
"""
    found = COMMANDS[command](tmp_path, text)
    assert [target.name for target in found] == ["box-7ms", "small", "own"]
    assert [target.place.name for target in found][:2] == ["box", "spare"]
    assert all(target.place.table == tmp_path / "a.yaml" for target in found)
    # A search predicts: nothing is built for it.
    assert all((target.place.device is None) == (command == "search") for target in found)


def test_a_search_reads_tables_counts_and_shares(tmp_path):
    found = search(tmp_path, TABLES)
    assert [target.name for target in found] == ["phone-15ms", "phone-0.5x", "pocket", "counted"]
    assert [target.place.name for target in found][2:] == ["board", "counted"]
    assert found[3].place.table is None


@pytest.mark.parametrize("command", COMMANDS)
def test_all_faults_are_told_at_once(tmp_path, command):
    reference = "teacher" if command == "run" else "full network"
    text = """devices:
  - name: a
    latency_table: t
    limits: [-1, 3ms, {latncy_ms: 3, latency: 20}, {}]
  - name: a
    runtime: tensorrt
    limits: []
  - name: b@c
    colour: red
  - kind: onnxruntime
    runtime: onnxruntime
    limits: {latency: 0.5x}
targets:
  - {name: ../x, device: aa, limits: {}}
  - {name: two, device: {therads: 2}, limits: {macs: -1, size: 0.5x, size_mb: 3}}
  - {name: TWO, limits: {macs: 1}, colour: red}
"""
    text = "\n" * (3 if command == "run" else 0) + text  # lines of JOB come before
    said = faults(COMMANDS[command], tmp_path, text)
    skipped = 3 + JOB.count("\n") if command == "run" else 0

    def at(line):
        return f"(line {line + skipped}): "

    for part in (
        f"devices[0].limits[0] {at(4)}expected a positive number or a share of the {reference} "
        "such as '0.5x', got -1",
        f"devices[0].limits[1] {at(4)}expected a positive number or a share of the {reference}",
        f"devices[0].limits[2].latncy_ms {at(4)}unknown metric; did you mean 'latency_ms'",
        "an absolute limit needs its unit, write 'latency_ms: 20'",
        f"devices[0].limits[3] {at(4)}no limit; give one of latency_ms, macs, params, size_mb",
        f"devices[1].name {at(5)}'a' is given twice",
        'unknown runtime "tensorrt"; known: onnxruntime',
        "expected a list of limits such as [15, 0.5x], got an empty list",
        "'b@c' has to be text without '@'",
        f"devices[2].colour {at(9)}unknown key",
        f"devices[2].limits {at(8)}missing, expected a list of limits such as [15, 0.5x], or",
        f"devices[3].runtime {at(11)}says the same as kind; give one of them",
        f"devices[3].name {at(10)}missing, expected text",
        "expected a list of limits such as [15, 0.5x], got keys and values",
        f"targets[0].name {at(14)}the name becomes a folder",
        f"targets[0].device {at(14)}unknown device \"aa\"; did you mean 'a'?",
        f"targets[0].limits {at(14)}expected at least one limit, such as 'latency: 0.5x'",
        f"targets[1].device.therads {at(15)}unknown key; did you mean 'threads'?",
        f"targets[1].limits.macs {at(15)}expected a positive number",
        f"targets[1].limits.size_mb {at(15)}'size' already limits the same figure",
        f"targets[2].name {at(16)}'TWO' is already the name of targets[1]",
        f"targets[2].colour {at(16)}unknown key",
    ):
        assert part in said, part


def test_a_name_is_taken_by_a_target_that_a_device_s_limits_made(tmp_path):
    text = """
devices: [{name: box, limits: [4]}]
targets: [{name: Box-4ms, limits: {macs: 1}}]
"""
    assert "'Box-4ms' is already the name of devices[0].limits[0]" in faults(fit, tmp_path, text)


def test_a_job_needs_devices_and_a_search_tables(tmp_path):
    text = """
devices: [{name: phone, latency_table: t, limits: [{macs: 3e8}]}]
targets: [{name: edge, device: {latency_table: t}, limits: {macs: 3e8}}]
"""
    said = faults(run, tmp_path, text)
    why = "a job measures its students, and a latency_table alone measures nothing; add the kind"
    assert said.count(why) == 2 and "devices[0] (line 5)" in said and "targets[0].device" in said
    said = faults(search, tmp_path, DEVICES)
    needs = "a latency limit needs device 'server' to have latency_table"
    assert said.count(needs) == 3 and "devices[0].limits[2].latency_ms (line 4)" in said
    assert "a latency limit needs device 'one'" in faults(search, tmp_path, TARGETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_devices_of_one_s_own(beside, command):
    text = """
devices:
  - {name: mine, kind: "my_clock:Clock", arguments: {tick: 2}, latency_table: t, limits: [3]}
targets:
  - name: other
    device: {kind: "my_clock:Clock", latency_table: t}
    limits: {latency_ms: 3}
"""
    mine, other = COMMANDS[command](beside, text)
    if command != "search":
        assert (mine.device.key, other.device.key) == ("clock 2", "clock 1.0")
    text = text.replace("tick", "tock").replace('"my_clock:Clock", lat', '"my_clock:Halted", lat')
    if command != "search":
        said = faults(COMMANDS[command], beside, text)
        assert "my_clock:Clock: calling it with {'tock': 2} failed: TypeError" in said
        assert "my_clock:Halted: expected a device with key, measure, got Halted without" in said
        text = text.replace("my_clock:Halted", "my_clocks:Clock")
        assert "can't import 'my_clocks'" in faults(COMMANDS[command], beside, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("devices: []", "expected a list of devices, got an empty list"),
        ("devices: null", "targets: missing, expected a list with a name"),
        ("targets: []", "expected a list with a name, a device and limits each, got an empty"),
        ("device: x", "unknown key; did you mean 'devices'?"),
        ("devices: [{name: a}]", "devices[0].limits (line 1): missing"),
        ("devices: [{name: a, limits: .nan, latency_table: t}]", "expected a list of limits"),
        ("devices: [a]", "devices[0] (line 1): expected keys and values (name, limits, kind"),
        ("targets: [{name: a, device: 3, limits: {macs: 1}}]", "targets[0].device (line 1): exp"),
        ("devices: [{name: a, threads: 0, limits: [1]}]", "threads must be at least 1, got 0"),
    ],
)
def test_faulty_files(tmp_path, text, said):
    assert said in faults(fit, tmp_path, text)


@pytest.mark.parametrize("text", [DEVICES.replace("- name: phone", "- {}\n  - name: phone")])
def test_an_empty_entry_is_no_crash(tmp_path, text):
    assert "devices[2].name" in faults(fit, tmp_path, text)


@pytest.mark.parametrize("text", [TARGETS, DEVICES, DEVICES + TARGETS])
def test_what_is_written_again_is_the_same(text):
    faults = Faults({})
    asked = {"base": Path("/srv"), "reference": "full network"}
    first = read_targets(faults, yaml.safe_load(text), **asked)
    again = read_targets(
        faults, yaml.safe_load(yaml.safe_dump(first.written, sort_keys=False)), **asked
    )
    assert faults.found == []
    assert again.written == first.written
    assert [(t.name, t.limits, t.place) for t in again.targets] == [
        (t.name, t.limits, t.place) for t in first.targets
    ]


REMOTE = """
targets:
  - name: pi
    device: {kind: ssh, host: pi@raspberry, runtime: openvino, threads: 4, config: mine}
    limits: {latency_ms: 30}
"""


def test_a_host_has_a_runtime_and_its_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "mine").write_text("")
    (target,) = fit(tmp_path, REMOTE)
    wanted = {"host": "pi@raspberry", "runtime": "openvino", "threads": 4}
    assert target.device == Ssh(**wanted, config=tmp_path / "mine")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("host: pi@raspberry, ", "", "targets[0].device.host (line 4): missing, expected text"),
        ("pi@raspberry", "-oProxyCommand=x", "host '-oProxyCommand=x' is none, expected a name"),
        ("config: mine", "config: none", "there is no such file"),
        ("openvino", "tflite", "unknown runtime 'tflite'; give one of onnxruntime, openvino"),
        ("kind: ssh", "kind: onnxruntime", "device.runtime (line 4): says the same as kind"),
    ],
)
def test_a_host_s_faults_stand_at_its_device(tmp_path, before, after, said):
    (tmp_path / "mine").write_text("")
    assert said in faults(fit, tmp_path, REMOTE.replace(before, after))


def test_a_fleet_may_say_what_files_look_like(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(TARGETS)
    assert load_fleet(fleet).export == ExportOptions()
    fleet.write_text(TARGETS + "export: {normalise: true, softmax: true, opset: 3, sofmax: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_fleet(fleet)
    assert "did you mean 'softmax'?" in str(caught.value)
    assert "export.opset (line 6): expected 13 or more, got 3" in str(caught.value)
    fleet.write_text(TARGETS + "export: {normalise: true}\n")
    found = load_fleet(fleet)
    assert found.export == ExportOptions(normalise=True) and len(found.targets) == 3


PRECISE = """
devices:
  - {name: server, kind: "my_int8:Board", precision: int8, batch: 4, limits: [9]}
  - {name: plain, kind: "my_int8:Board"}
targets:
  - {name: as-server, device: server, limits: {macs: 1e8}}
  - {name: all, device: server, precision: auto, limits: {macs: 1e8}}
  - {name: two, device: plain, batch: 8, precision: [int8, float32], limits: {throughput: 2x}}
  - {name: same, device: plain, batch: 8, limits: {accuracy_loss: 1.0}}
  - {name: one, device: {kind: "my_int8:Board", batch: 2, precision: [float32]}, limits: {macs: 1}}
"""


@pytest.fixture
def boards(beside):
    """A device that runs float32 and int8, and one that says nonsense of what it runs."""
    (beside / "my_int8.py").write_text(
        textwrap.dedent(
            """
            class Board:
                key = "board"
                precisions = ("float32", "int8")
                def measure(self, models):
                    return []
            class Odd(Board):
                precisions = ("int4",)
            """
        )
    )
    yield beside
    sys.modules.pop("my_int8", None)


@pytest.mark.parametrize("command", ["run", "fit"])
def test_precisions_and_batches_of_targets(boards, command):
    found = {target.name: target for target in COMMANDS[command](boards, PRECISE)}
    assert {name: target.precisions for name, target in found.items()} == {
        "server-9ms": ("int8",),
        "as-server": ("int8",),
        "all": None,
        "two": ("int8", "float32"),
        "same": None,
        "one": ("float32",),
    }
    assert {name: (t.place.name, t.place.batch) for name, t in found.items()} == {
        "server-9ms": ("server", 4),
        "as-server": ("server", 4),
        "all": ("server", 4),
        "two": ("plain batch 8", 8),
        "same": ("plain batch 8", 8),
        "one": ("board, batch 2", 2),
    }
    assert found["two"].place is found["same"].place
    assert len(places_of(list(found.values()))) == 3


def test_precisions_and_batches_are_written_again_as_they_are(boards):
    asked = {"base": boards, "reference": "teacher"}
    faults = Faults({})
    first = read_targets(faults, yaml.safe_load(PRECISE), **asked)
    text = yaml.safe_dump(first.written, sort_keys=False)
    again = read_targets(faults, yaml.safe_load(text), **asked)
    assert faults.found == [] and again.written == first.written
    for before, after in zip(first.targets, again.targets, strict=True):
        assert (before.name, before.limits, before.precisions) == (
            after.name,
            after.limits,
            after.precisions,
        )
        assert (before.place.key, before.place.name) == (after.place.key, after.place.name)


@pytest.mark.parametrize("command", ["run", "fit"])
def test_faults_of_precisions_and_batches_are_told_with_their_lines(boards, command):
    text = """devices:
  - {name: board, kind: "my_int8:Board", precision: [int8, int8], limits: [9]}
  - {name: odd, kind: "my_int8:Odd", precision: int8, limits: [9]}
  - {name: table, kind: "my_int8:Board", latency_table: t, batch: 0, limits: [9]}
  - {name: ready, kind: "my_int8:Board", latency_table: t, limits: [9]}
targets:
  - {name: a, precision: int4, limits: {macs: 1}}
  - {name: b, device: board, precision: float16, batch: 9999, limits: {accuracy: 97}}
  - {name: c, device: {kind: "my_int8:Board", precision: []}, batch: many, limits: {macs: 1}}
  - {name: d, device: ready, batch: 8, precision: 8, limits: {accuracy_loss: 0.5x}}
"""
    said = faults(COMMANDS[command], boards, text)
    first = JOB.count("\n") if command == "run" else 0

    def at(line):
        return f"(line {line + first}): "

    for part in (
        f"devices[0].precision {at(2)}one is given twice",
        f"devices[1].precision {at(3)}device board: its precisions are ('int4',), expected a tuple",
        f"devices[2].batch {at(4)}expected 1 to 4096 images, got 0",
        f"targets[0].precision {at(7)}unknown 'int4'; give one or more of float32, float16, int8",
        f"targets[1].precision {at(8)}the device runs float32, int8, and float16 is asked of it",
        f"targets[1].batch {at(8)}expected 1 to 4096 images, got 9999",
        f"targets[1].limits.accuracy {at(8)}expected a share of right answers up to 1",
        f"targets[2].device.precision {at(9)}the list is empty; give one or more of float32",
        f'targets[2].batch {at(9)}expected a whole number or null, got "many"',
        f"targets[3].batch {at(10)}the latency table of 'ready' is of calls of 1 image; give a",
        f"targets[3].precision {at(10)}expected text or a list of texts or null, got 8",
        f"targets[3].limits.accuracy_loss {at(10)}expected points of accuracy, 0 or more",
    ):
        assert part in said, (part, said)


def test_a_search_refuses_what_predictions_can_not_tell(tmp_path):
    text = """
devices:
  - {name: phone, latency_table: t, batch: 8, precision: int8, limits: [{images_per_second: 500}]}
"""
    (found,) = search(tmp_path, text)
    assert found.absolute({}) == {"latency_ms": 16.0}
    text = """
devices:
  - {name: phone, latency_table: t, limits: [{accuracy_loss: 1}]}
  - {name: box, limits: [{throughput: 2x}]}
"""
    said = faults(search, tmp_path, text)
    assert "devices[0].limits[0].accuracy_loss (line 3): a search is for the most accurate" in said
    assert "a latency limit needs device 'box' to have latency_table" in said


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_settings_of_a_device_leave_keys_of_all_devices_alone(kind):
    own = own_fields(DEVICE_KINDS[kind])
    assert not own.keys() & {"name", "kind", "latency_table", "limits", "batch", "precision"}


@dataclass(frozen=True, kw_only=True)
class Far:
    """A device elsewhere, whose settings are of every type that there is."""

    host: str
    runtime: str = "onnxruntime"
    keys: Path | None = None
    threads: int = 1

    def __post_init__(self):
        if self.threads < 1:
            raise ConfigError(f"Far: threads must be 1 or more, got {self.threads}")

    @property
    def key(self):
        return f"{self.host}, {self.runtime}"

    def measure(self, models):
        return []


def far(folder, text, **more):
    faults = Faults(read(text).lines)
    found = read_targets(
        faults, read(text).data, base=folder, reference="teacher", kinds={"far": Far}, **more
    )
    return found, faults.found


def test_settings_are_those_of_the_kind(tmp_path):
    text = """
devices:
  - {name: pi, kind: far, host: pi@raspberry, runtime: openvino, keys: my/keys, limits: [30]}
  - {name: old, runtime: far, host: old, limits: [30]}
"""
    found, wrong = far(tmp_path, text)
    assert wrong == [] and [target.device for target in found.targets] == [
        Far(host="pi@raspberry", runtime="openvino", keys=tmp_path / "my" / "keys"),
        Far(host="old"),
    ]
    again, wrong = far(tmp_path, yaml.safe_dump(found.written, sort_keys=False))
    assert wrong == [] and again == found
    _, wrong = far(tmp_path, text.replace("host: old", "threads: 0").replace("my/keys", "4"))
    assert wrong == [
        "devices[0].keys (line 3): expected text or null, got 4; put it in quotes",
        "devices[1].host (line 4): missing, expected text",
    ]


@pytest.mark.parametrize("command", ["run", "fit"])
def test_how_files_are_quantised(tmp_path, command):
    def read_in(more):
        if command == "run":
            return check(read(JOB + TARGETS + more), folder=tmp_path).quantise
        (tmp_path / "fleet.yaml").write_text(TARGETS + more)
        return load_fleet(tmp_path / "fleet.yaml").quantise

    assert read_in("") == read_in("quantise:\n") == QuantiseOptions()
    found = read_in("quantise: {calibration_images: 64, train_epochs: 0}\n")
    assert found == QuantiseOptions(calibration_images=64, train_epochs=0)
    for more, said in (
        (
            "{calibration_images: 4}",
            r"quantise.calibration_images \(line \d+\): expected 16 or more",
        ),
        ("{max_los: 4}", r"quantise.max_los \(line \d+\): unknown key; did you mean 'max_loss'"),
        ("false", r"got false; a target that is not to be quantised says 'precision: float32'"),
        ("8", r"quantise \(line \d+\): expected keys and values \(calibration_images, max"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_in(f"quantise: {more}\n")
