import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from tailorbird import cli, doctor
from tailorbird.cli import machine
from tailorbird.cli.house import Until, job_in, run_job
from tailorbird.config import template
from tailorbird.errors import StoreError
from tailorbird.report.record import RunReport, TargetResult

JOB = """\
teacher: {model: "tailorbird.demo:digits_net", arguments: {width: 8, depth: 1}, train: {epochs: 1}}
data: {kind: digits, image_size: 8}
targets: [{name: edge, limits: {latency: 0.5x}}]
run: out
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def call(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def ending(execute, job, until=Until.EXPORT):
    """The exit code of running a job with something in the pipeline's place."""
    with pytest.raises(typer.Exit) as end:
        cli.plainly(run_job)(job, until, execute=execute)
    return end.value.exit_code


def reporting(*, met: bool, calls: list | None = None):
    """What stands in for the pipeline: a report with one target."""
    target = TargetResult(name="edge", device="d", limits={"latency_ms": 1.0}, met=met)

    def execute(job, *, until, progress):
        if calls is not None:
            calls.append((job, until, progress))
        return RunReport(run=str(job.run), seed=job.seed, targets=(target,))

    return execute


def failing(error: BaseException):
    def execute(job, **_):
        raise error

    return execute


def test_starts_without_heavy_imports():
    program = "import sys, tailorbird.cli; print([m for m in {0} if m in sys.modules])"
    heavy = ["torch", "onnxruntime", "matplotlib", "timm", "numpy", "pydantic", "rich"]
    done = subprocess.run(
        [sys.executable, "-c", program.format(heavy)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_names_every_command():
    text = call("--help").output
    for command in ("init", "run", "inspect", "measure", "doctor", "demo"):
        assert f"\n  {command} " in text
        assert call(command, "--help").exit_code == 0
    assert "..." not in text.split("Commands:")[1]
    assert call("--version").output.startswith("tailorbird 0.")
    assert call("runn").exit_code == 2


def test_init_prints_the_job_that_runs():
    assert call("init").stdout == template("job")


def test_run_builds_and_prints_the_table(job, capsys):
    calls: list = []
    run_job(job, Until.EXPORT, quiet=True, execute=reporting(met=True, calls=calls))
    said = capsys.readouterr().out
    assert "1 of 1 targets met" in said
    assert f"report: {job.parent / 'out' / 'report.html'}" in said
    [(built, until, _)] = calls
    assert until == "export" and built.run == job.parent / "out"


def test_a_target_not_met_has_its_own_code(job, capsys):
    assert ending(reporting(met=False), job) == 3
    assert "edge: not met" in capsys.readouterr().out
    run_job(job, Until.SEARCH, execute=reporting(met=False))


def test_errors_are_one_message_without_a_traceback(job, capsys):
    assert ending(failing(StoreError("run folder is in use")), job) == 2
    assert capsys.readouterr().err == "error: run folder is in use\n"
    job.write_text(JOB + "sede: 1\nrounds: 0\n")
    done = call("run", job)
    assert done.exit_code == 2 and "error: 2 problems:" in done.stderr
    assert "did you mean 'seed'?" in done.stderr and "Traceback" not in done.output


def test_ctrl_c_says_how_to_go_on(job, capsys):
    assert ending(failing(KeyboardInterrupt()), job) == 130
    assert "run the same command again to continue" in capsys.readouterr().err


PRESSED = """
import atexit, sys, time
import typer
from tailorbird import cli

def wait(word, here):
    print(word, flush=True)
    time.sleep(60 if here else 0)

@cli.plainly
def command():
    try:
        wait("working", True)
    finally:
        wait("unwinding", sys.argv[1] == "unwinding")

atexit.register(lambda: wait("closing", sys.argv[1] == "closing"))
try:
    command()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize("second", ["unwinding", "closing", "never"])
def test_a_second_ctrl_c_ends_at_once_with_the_same_code(second):
    process = subprocess.Popen(
        [sys.executable, "-c", PRESSED, second],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for word in ("working", "unwinding", "closing"):
            assert process.stdout.readline() == f"{word}\n"
            if word in ("working", second):
                process.send_signal(signal.SIGINT)
            if word == second:
                break
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopping; press ctrl-C again to stop at once" in said
    assert ("run the same command again to continue" in said) == (second != "unwinding")
    assert "Traceback" not in said


def test_ctrl_c_is_left_as_it_was_after_a_command(job):
    seen = []
    report = reporting(met=True)

    def execute(*given, **options):
        seen.append(signal.getsignal(2))
        return report(*given, **options)

    cli.plainly(run_job)(job, Until.EXPORT, execute=execute)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler not in seen


def test_a_fault_of_our_own_is_not_hidden(job):
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.plainly(run_job)(job, Until.EXPORT, execute=failing(ZeroDivisionError("ours")))


def test_demo_writes_its_job_once_and_runs_it(tmp_path):
    folder = tmp_path / "demo"
    assert job_in(folder).read_text() == template("job")
    (folder / "job.yaml").write_text(JOB.replace("epochs: 1", "epochs: 0"))
    done = call("demo", folder)
    assert done.exit_code == 2 and "teacher.train.epochs (line 1): expected" in done.stderr
    assert job_in(folder).read_text() == JOB.replace("epochs: 1", "epochs: 0")


def test_inspect_reads_a_report(tmp_path):
    RunReport(run="r", seed=0).save(tmp_path / "report.json")
    assert "nothing has been sampled yet" in call("inspect", tmp_path).stdout
    assert json.loads(call("inspect", tmp_path, "--json").stdout)["alternatives"] == []
    assert call("inspect", tmp_path / "none").exit_code == 2


def test_measure_times_a_file(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    shape = [1, 3, 8, 8]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")
    )
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    done = call("measure", path, path, "--runs", 15, "--json")
    rows = json.loads(done.stdout)
    assert [row["model"] for row in rows] == [str(path)] * 2
    assert all(row["median_ms"] > 0 for row in rows)
    assert "ms median" in call("measure", path, "--runs", 15).stdout
    done = call("measure", path, "--provider", "NoProvider", "--threads", 0)
    assert done.exit_code == 2 and "error: 2 problems" in done.stderr
    assert call("measure", tmp_path / "none.onnx").exit_code == 2


def test_doctor_fails_when_something_is_wrong(capsys):
    with pytest.raises(typer.Exit) as end:
        machine.tell([doctor.Finding("disk", "wrong", "full; free some")])
    assert end.value.exit_code == 2
    assert "WRONG  disk: full; free some\n1 to mend" in capsys.readouterr().out
    machine.tell([doctor.Finding("disk", "ok", "fine")])
    assert capsys.readouterr().out.endswith("ready\n")
    assert "python: " in call("doctor").stdout


def test_output_that_nobody_reads_is_no_crash(tmp_path):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tailorbird", "init"],
            stdout=write, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        )  # fmt: skip
    finally:
        os.close(write)
    assert "Traceback" not in done.stderr


def test_plainly_keeps_the_signature():
    assert cli.plainly(SimpleNamespace).__wrapped__ is SimpleNamespace
