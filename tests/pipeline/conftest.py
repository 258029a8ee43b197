"""What is built once and copied: a house takes most of a small job's time."""

import shutil

import pytest

from tests.pipeline.makers import job, run_job


@pytest.fixture(scope="session")
def built_house(tmp_path_factory):
    """The folder of the tiny job whose house is built, and nothing fitted."""
    folder = tmp_path_factory.mktemp("built") / "run"
    run_job(job(folder), until="house")
    return folder


@pytest.fixture
def with_house(built_house, tmp_path):
    """Makes a run folder of that name in which the house is built."""

    def make(name="run"):
        return shutil.copytree(built_house, tmp_path / name)

    return make
