"""Commands that are given something else say what it is and which command takes it."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tailorbird.cli import app
from tailorbird.cli.recognise import Kind, kind_of
from tailorbird.config import template
from tailorbird.measure.guarded import too_many_threads
from tests.fakes import FakeDevice


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """One of each kind."""
    base = tmp_path_factory.mktemp("things")
    made = {
        Kind.HOUSE_RUN: "run/house/sample.json", Kind.SUPERNET_RUN: "once/supernet/space.json",
        Kind.STUDENT: "run/students/edge/student.json", Kind.ONNX: "model.onnx",
        Kind.WEIGHTS: "net.pth", Kind.IMAGES: "pets/cat/1.jpg",
    }  # fmt: skip
    depth = {Kind.HOUSE_RUN: 2, Kind.SUPERNET_RUN: 2, Kind.STUDENT: 1, Kind.IMAGES: 2}
    found = {}
    for kind, name in made.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        for _ in range(depth.get(kind, 0)):
            path = path.parent
        found[kind] = path
    texts = {
        Kind.HOUSE_JOB: template("job"), Kind.SUPERNET_JOB: template("supernet"),
        Kind.FLEET: "targets: []", Kind.DATA: "data: digits",
    }  # fmt: skip
    for kind, text in texts.items():
        found[kind] = base / f"{kind.name.lower()}.yaml"
        found[kind].write_text(text)
    return found


def test_each_kind_is_told_from_the_others(things):
    assert {kind: kind_of(path) for kind, path in things.items()} == {k: k for k in Kind}


def test_what_is_damaged_or_strange_is_left_to_the_command(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "notes.txt").write_text("teacher: none")
    assert [kind_of(tmp_path / name) for name in ("bad.yaml", "notes.txt", "none", "")] == [
        None
    ] * 4


COMMANDS = [
    (("run",), Kind.HOUSE_JOB),
    (("supernet", "train"), Kind.SUPERNET_JOB),
    (("inspect",), Kind.HOUSE_RUN),
    (("measure",), Kind.ONNX),
    (("supernet", "evaluate"), Kind.SUPERNET_RUN),
]


@pytest.mark.parametrize(("command", "takes"), COMMANDS)
def test_commands_name_the_one_that_takes_it(things, command, takes):
    for kind, path in things.items():
        if kind is takes:
            continue
        done = CliRunner().invoke(app, [*command, str(path)])
        said = " ".join(done.stderr.split())
        assert done.exit_code == 2
        assert f"{path}: expected {takes}; this is {kind}: " in said
    wanted = {Kind.HOUSE_JOB: "tailorbird supernet train", Kind.SUPERNET_JOB: "tailorbird run"}
    if takes in wanted:
        other = Kind.SUPERNET_JOB if takes is Kind.HOUSE_JOB else Kind.HOUSE_JOB
        done = CliRunner().invoke(app, [*command, str(things[other])])
        assert f"{wanted[takes]} {things[other]}" in done.stderr


@pytest.mark.parametrize("command", ["run", "supernet train"])
def test_a_fault_of_yaml_is_told_before_torch_is_imported(tmp_path, command):
    (tmp_path / "job.yaml").write_text("teacher: {model: timm:resnet18\n")
    program = (
        "import sys\n"
        "from tailorbird.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules, 'scipy' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split(), str(tmp_path / "job.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "False False\n")
    assert "job.yaml: line 2: expected ',' or '}'" in done.stderr


def test_more_threads_than_cores_are_told():
    assert too_many_threads(FakeDevice()) is None
    assert too_many_threads(None) is None
