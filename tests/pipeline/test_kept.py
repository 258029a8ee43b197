"""What is kept is what was made: a change of inputs or files is noticed, and costs what it must."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tailorbird.errors import StoreError
from tailorbird.pipeline.reporting import PAGES
from tests.fakes import Told, write_nothing
from tests.house.makers import OPTIONS, images, net

from .makers import job, run_job, small, tensors

LIMITS = {"edge": {"latency": "0.6x"}}
SMALL = replace(OPTIONS, memory_mb=2)


def again(run, **changes):
    told = Told()
    report = run_job(job(run, limits=LIMITS, **changes), progress=told)
    assert report.targets[0].met
    return told


@pytest.fixture(scope="module")
def whole(built_house, tmp_path_factory):
    run = shutil.copytree(built_house, tmp_path_factory.mktemp("whole") / "run")
    again(run)
    for page in PAGES:  # they are not drawn here
        (run / page).touch()
    assert "nothing to do" in again(run)
    return run


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of a run at its end."""
    return shutil.copytree(whole, tmp_path / "run")


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_bytes(b"another file")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("students/edge/model.onnx", empty),
        ("students/edge/model.onnx", overwrite),
        ("students/edge/student.safetensors", cut_off),
        ("students/edge/student.json", remove),
        ("students/edge/verify.json", remove),
        ("teacher/model.onnx", cut_off),
    ],
)
def test_delivered_files_are_made_again_from_what_is_there(finished, name, damage):
    path = finished / name
    before, trained = path.read_bytes(), tensors(finished)
    damage(path)
    if name.startswith("teacher"):  # it is needed for the next target only
        (finished / "finished.json").unlink()
        (finished / "students/edge/result.json").unlink()
    assert "nothing to do" not in again(finished)
    assert path.read_bytes() == before
    assert tensors(finished) == trained
    assert "nothing to do" in again(finished)


def test_a_report_that_was_deleted_is_written_again(finished):
    written = []

    def write(report, folder):
        write_nothing(report, folder)
        written.append(report)

    (finished / "report.html").unlink()
    told = Told()
    report = run_job(job(finished, limits=LIMITS), progress=told, write=write)
    assert "its report is written anew" in told
    assert written == [report]


def test_changed_distilling_redoes_what_depends_on_it_and_says_so(finished):
    sample = (finished / "house/sample.json").read_bytes()
    trained = tensors(finished)
    told = again(finished, options=replace(SMALL, epochs=SMALL.epochs + 1))
    assert "house.epochs: " in told and "made anew is what depends on it: " in told
    assert (finished / "house/sample.json").read_bytes() == sample
    assert tensors(finished) != trained
    assert "nothing to do" in again(finished, options=replace(SMALL, epochs=SMALL.epochs + 1))


def test_changed_augmentation_trains_anew(finished):
    data = images()
    flipped = replace(data, train=replace(data.train, flip=not data.train.flip))
    told = again(finished, data=flipped)
    assert "data.augmentation.flip: " in told and "retrain" in told


def test_a_longer_budget_keeps_everything(finished):
    before = tensors(finished)
    told = again(finished, options=replace(SMALL, minutes=60.0))
    assert "nothing to do" in told
    assert tensors(finished) == before


def test_equal_images_under_another_name_are_the_same(finished):
    assert "nothing to do" in again(finished, data=replace(images(), name="moved"))


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_tensors_that_are_no_weights_count(tmp_path, kind):
    def changed(value):
        network = net()
        if kind == "buffer":
            network.register_buffer("offset", torch.tensor([value]), persistent=False)
        else:
            network.offset = torch.tensor([value])
        return network

    def build(value):
        teacher, options = changed(value), small(SMALL)
        asked = job(tmp_path / "own", limits=LIMITS, teacher=teacher, options=options)
        run_job(asked, until="house")

    build(0.0)
    build(0.0)
    with pytest.raises(StoreError, match="teacher: tensors that it computes with"):
        build(1.0)


def test_one_damaged_identity_takes_no_run_with_it(finished):
    (finished / "identity.json").write_text("{")
    assert "nothing to do" in again(finished)
    (finished / "identity.json").write_text("{")
    (finished / ".identity.json").write_text("[]")
    with pytest.raises(StoreError, match="nothing tells which job the folder belongs to"):
        again(finished)


def test_a_later_layout_is_refused(finished):
    for name in ("identity.json", ".identity.json"):
        known = json.loads((finished / name).read_text())
        (finished / name).write_text(json.dumps({**known, "format": 99}))
    with pytest.raises(StoreError, match="written by a later version of Tailorbird"):
        again(finished)


def test_another_version_is_said(finished):
    known = json.loads((finished / "environment.json").read_text())
    (finished / "environment.json").write_text(json.dumps({**known, "torch": "1.0"}))
    assert "versions changed since it was begun: torch 1.0 -> " in again(finished)
