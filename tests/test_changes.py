"""What differs is told as the settings that people wrote."""

import pytest

from tailorbird.changes import in_settings, job_of
from tailorbird.errors import StoreError
from tailorbird.runfolder import CONFIG, RunFolder


def test_settings_explain_fingerprints_and_the_rest_is_words():
    old = {"teacher": {"model": "a"}, "donors": {"b": {"model": "c"}}, "data": {"image_size": 64}}
    new = old | {"donors": {"b": {"model": "d"}}}
    lines = ["models.b: '1' -> '2'", "models.teacher: '3' -> '4'", "seed: 0 -> 1",
             "data.sampled: '5' -> '6'", "data.fingerprint: '7' -> '8'"]  # fmt: skip
    assert in_settings(lines, old, new) == [
        "donors.b.model: 'c' -> 'd'",
        "teacher: its weights are others",
        "seed: 0 -> 1",
        "data: the images or their labels are others",
    ]
    assert in_settings(["seed: 0 -> 1"], {}, {}) == ["seed: 0 -> 1"]


def test_a_changed_image_size_is_told_as_such(tmp_path):
    folder, job = RunFolder(tmp_path / "run"), {"data": {"kind": "folder", "image_size": 64}}
    with folder.open({"data": {"fingerprint": "ab"}}, job=job) as opened:
        (opened.path / CONFIG).write_text("data: {kind: folder, image_size: 64}")
        (opened.path / "house").mkdir()
    changed = {"data": {"kind": "folder", "image_size": 72}}
    with (
        pytest.raises(StoreError) as caught,
        folder.open({"data": {"fingerprint": "cd"}}, job=changed),
    ):
        pass
    said = str(caught.value)
    assert "what differs:\n  data.image_size: 64 -> 72\n" in said and "fingerprint" not in said


def test_a_damaged_config_explains_nothing(tmp_path):
    (tmp_path / CONFIG).write_bytes(b"\xff: [")
    assert job_of(tmp_path / CONFIG) == {} == job_of(tmp_path / "missing")
