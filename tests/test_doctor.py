import tempfile
from pathlib import Path

import torch

from tailorbird import doctor


def test_every_topic_is_looked_at(tmp_path):
    found = doctor.examine(tmp_path / "not" / "yet")
    topics = {finding.topic for finding in found}
    assert {"python", "packages", "cores", "gpu", "onnxruntime", "clock", "disk"} <= topics
    assert not [finding for finding in found if finding.level == "wrong"]
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_is_wrong_and_says_what_to_do(monkeypatch, tmp_path):
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    [disk] = [f for f in doctor.examine(tmp_path) if f.topic == "disk"]
    assert disk.level == "wrong"
    assert "Permission denied" in disk.text and "'run' in the job" in disk.text


def test_a_check_that_breaks_is_a_finding(monkeypatch, tmp_path):
    def broken() -> None:
        raise ImportError("libcuda is torn")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = doctor.examine(tmp_path)
    assert doctor.Finding("check", "wrong", "ImportError: libcuda is torn") in found
    assert any(finding.topic == "disk" for finding in found)


def test_flags_are_read_from_linux(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu avx512_bf16 avx2\n\nflags: other\n")
    assert doctor.cpu_flags(info) == {"fpu", "avx512_bf16", "avx2"}
    assert doctor.cpu_flags(Path(tmp_path / "none")) == frozenset()
