import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.changes import differences
from tailorbird.errors import StoreError
from tailorbird.files import read_json, scratch, write_bytes, write_json
from tailorbird.runfolder import RunFolder

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(PLAIN)
def test_equal_structures_do_not_differ(value):
    assert differences(value, value) == []


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers()), st.integers())
def test_one_changed_leaf_is_one_line(job, value):
    changed = {**job, "key": value}
    assert differences({"a": job}, {"a": changed}) == [f"a.key: None -> {value}"]


def test_another_job_is_refused_with_what_differs(tmp_path):
    with RunFolder(tmp_path / "run").open({"seed": 0, "house": {"recall": 0.3, "leaves": ("a",)}}):
        pass
    with RunFolder(tmp_path / "run").open({"seed": 0, "house": {"recall": 0.3, "leaves": ("a",)}}):
        (tmp_path / "run" / "house").mkdir()
    with (
        pytest.raises(StoreError) as caught,
        RunFolder(tmp_path / "run").open({"seed": 1, "house": {"recall": 0.5, "leaves": ("a",)}}),
    ):
        pass
    assert "belongs to another job" in str(caught.value)
    assert "  house.recall: 0.3 -> 0.5\n  seed: 0 -> 1\n" in str(caught.value)


def test_a_job_found_wrong_before_anything_was_made_can_be_mended(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.open({"seed": 0}):
        folder.event("started")
    with folder.open({"seed": 1}):
        pass
    with folder.open({"seed": 1}):
        (tmp_path / "run" / "models").mkdir()
    with pytest.raises(StoreError, match="seed: 1 -> 0"), folder.open({"seed": 0}):
        pass


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(StoreError, match=r"holds files but no identity\.json \(thesis\.tex\)"),
        RunFolder(tmp_path).open({}),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "x"


HOLDER = """
import sys, time
from tailorbird.runfolder import RunFolder
with RunFolder(sys.argv[1]).open({}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_share_a_folder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(StoreError, match="is in use by another process"),
                RunFolder(tmp_path).open({}),
            ):
                pass
        finally:
            other.kill()
    with RunFolder(tmp_path).open({}):
        pass


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path).open({}):
        raise KeyError
    with RunFolder(tmp_path).open({}):
        pass


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"can't be written: .*; give a folder"),
        RunFolder(tmp_path / "file" / "run").open({}),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="can't be written"), RunFolder(tmp_path / "run").open({}):
        pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_litter(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(StoreError, match=r"can't write .*a\.json: No space left on device; free"):
        write_json(tmp_path / "a.json", {"new": 1})
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_figures_that_json_has_not(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=64))
def test_damaged_json_never_passes_for_read(content):
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"tailorbird-{os.getpid()}.json"
    path.write_bytes(content)
    try:
        read_json(path)
    except StoreError as error:
        assert "remove it to have it made anew" in str(error)
    finally:
        path.unlink()


def test_bytes_arrive_whole_in_new_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\x00\x01")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\x01"


def test_the_user_says_who_may_read_what_is_written(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.bin", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_stages_add_up_over_processes_and_a_torn_line(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.open({}):
        folder.event("spent", stage="distil", seconds=2.0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "spent", "stage": "dis')
    with folder.open({}):
        folder.event("spent", stage="distil", seconds=3.0)
        folder.event("spent", stage="score", seconds=1.0)
    assert folder.seconds() == {"distil": 5.0, "score": 1.0}


def test_a_stage_counts_its_time_even_when_it_fails(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.open({}), pytest.raises(KeyError), folder.stage("score"):
        raise KeyError
    assert folder.seconds().keys() == {"score"}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tailorbird.runfolder import RunFolder

folder = RunFolder(Path(sys.argv[1]), beat_s=0.02)
with folder.open({}), folder.stage("distil"):
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_spent_is_counted(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for kills in (1, 2):
        subprocess.run([sys.executable, "-c", KILLED, folder.path], check=False)
        with folder.open({}):
            assert folder.seconds()["distil"] > 0.1 * kills
    assert not (folder.path / ".spent.json").exists()


def test_what_killed_processes_left_in_temporary_folders_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, young, other = (tmp_path / name for name in ("tailorbird-a", "tailorbird-b", "other"))
    for folder in (dead, young, other):
        folder.mkdir()
        (folder / "network.onnx").touch()
    os.utime(dead, (0, 0))
    with scratch() as mine:
        os.utime(mine, (0, 0))
        with scratch() as second:
            assert {path.name for path in tmp_path.iterdir()} == {
                young.name, other.name, mine.name, second.name
            }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name}


def test_no_temporary_folder_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(StoreError, match=r"no temporary folder can be made: .*set TMPDIR"),
        scratch(),
    ):
        pass
