"""Run folders that the first edition made are opened by today's code with their job files.

``first_edition.zip`` holds what `record.py` kept with ``--folder``, run by the first edition's
code, without the checkpoints of finished training, and without pictures and pages.
"""

import zipfile

import pytest

from tests.reference.record import DEVICE, HERE, HOUSE, hash_of, user, write


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(HERE / "first_edition.zip") as kept:
        kept.extractall(tmp_path)
    return tmp_path


def weights(folder):
    return {path: hash_of(path) for path in folder.rglob("*.safetensors")}


def built(folder):
    """Of all but students, which are found in another way now."""
    found = weights(folder)
    return {path: found[path] for path in found if not {"students", "retrain"} & {*path.parts}}


@pytest.mark.slow
def test_a_finished_house_is_kept_and_serves_one_more_target(folder):
    house = folder / "house"
    more = {"name": "more", "device": DEVICE, "limits": {"latency": "0.9x"}}
    write(house / "more.yaml", {**HOUSE, "targets": [*HOUSE["targets"], more]})
    before = built(house)
    with user(house) as tell:
        for again in (False, True):
            code, table, said = tell("run", "job.yaml", "--quiet")
            assert code == 3 and "2 of 3 targets met" in table
            assert ("holds this job, finished" in said) == again
        assert (house / "run" / "report.html").is_file()
        assert built(house) == before
        code, table, _ = tell("run", "more.yaml", "--quiet")
    assert code == 3 and "3 of 4 targets met" in table
    after = weights(house)
    assert built(house) == before
    assert house / "run" / "students" / "more" / "student.safetensors" in after
    assert not list((house / "run" / "models").rglob("epoch-*"))  # no network was trained anew


def test_a_trained_supernet_is_kept_and_fitted_anew(folder):
    """Its answers were to a few of the images; an answer is to all of them now."""
    supernet = folder / "supernet"
    before = weights(supernet / "run" / "supernet")
    few = ("--subnets", "20", "--images", "64", "--candidates", "2", "--rounds", "2")
    with user(supernet) as tell:
        code, _, said = tell("supernet", "train", "job.yaml", "--quiet")
        assert code == 0 and "holds this supernet, trained; nothing to do" in said
        for again in (False, True):
            code, table, said = tell("supernet", "fit", "run", "fleet.yaml", *few, "--quiet")
            assert code == 3 and "2 of 3 targets met" in table
            assert ("holds these students; nothing to do" in said) == again
    assert weights(supernet / "run" / "supernet") == before
