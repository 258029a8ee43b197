"""What holds for all tests."""

import shutil
import signal

import pytest
import torch

# Some tests ask for equal bits, and how several threads share a matrix product may change the last.
torch.set_num_threads(1)

# A shell that starts the gate in the background has it ignore ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def built_house(tmp_path_factory):
    """The folder of the tiny job whose house is built, and nothing fitted; to be copied."""
    from tests.pipeline.makers import job, run_job

    folder = tmp_path_factory.mktemp("built") / "run"
    run_job(job(folder), until="house")
    return folder


@pytest.fixture
def with_house(built_house, tmp_path):
    """Makes a run folder of the tiny job in which the house is built."""

    def make(name="run"):
        return shutil.copytree(built_house, tmp_path / name)

    return make
