"""Two processes against one: started once, as torchrun starts them, then looked at."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tailorbird.supernet.train import train_supernet
from tests.supernet.bandit import Makes
from tests.supernet.tiny import stripes, tiny_supernet
from tests.supernet.together import LEARNS, RECIPE, SCHEME, SEED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes left: (folder, what they wrote on the error stream)."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, ROOT / "tests" / "supernet" / "together.py", folder],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (folder / "other.json").is_file(), done.stderr
    assert done.returncode != 0
    return folder


def found(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    net = tiny_supernet(folder, dropout=0.3)
    recipe = replace(RECIPE, accumulate=2)
    return train_supernet(net, stripes(), SCHEME, seed=SEED, recipe=recipe, validate_epochs=2)


def test_two_processes_do_what_one_does_with_two_parts(pair, alone):
    main, other = (load_file(pair / f"{name}.safetensors") for name in ("main", "other"))
    assert all((main[name] == other[name]).all() for name in main)
    for name, value in alone.supernet.state_dict().items():
        assert (main[name] - value).abs().max() < 1e-5, name
    for one, expected in zip(found(pair, "main")["history"], alone.history, strict=True):
        for name, value in vars(expected).items():
            if name not in ("seconds", "images_per_second"):
                assert one[name] == (
                    pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                ), name
    assert found(pair, "main")["macs"] == alone.macs


def test_all_processes_learn_the_same_from_losses(pair, tmp_path):
    learnt = found(pair, "main")["learnt"]
    assert learnt == found(pair, "other")["learnt"]
    makes = Makes()
    net = tiny_supernet(tmp_path, dropout=0.3)
    recipe = replace(RECIPE, accumulate=2)
    train_supernet(net, stripes(), replace(LEARNS, sampler=makes), seed=SEED, recipe=recipe)
    assert learnt == pytest.approx(makes.made[0].losses.tolist(), rel=1e-4)


def test_the_main_process_alone_is_observed_and_validates(pair):
    main, other = found(pair, "main"), found(pair, "other")
    assert (main["observed"], other["observed"]) == (4, 0)
    assert main["history"][-1]["largest"] is not None
    assert other["history"][-1]["largest"] is None


def test_one_process_goes_on_where_two_were_stopped(pair, alone, tmp_path):
    folder = pair / "run"
    [*_, newest] = sorted(folder.glob("epoch-*.json"))
    newest.unlink()
    steps = []
    again = train_supernet(
        tiny_supernet(tmp_path, dropout=0.3),
        stripes(),
        SCHEME,
        seed=SEED,
        recipe=RECIPE,
        folder=folder,
        observe_steps=lambda made: steps.append(made.step),
    )
    assert steps == [10, 11, 12]
    for one, expected in zip(again.history[:3], alone.history, strict=False):
        assert one.loss == pytest.approx(expected.loss, rel=1e-4)


def test_a_loss_that_is_not_finite_anywhere_stops_all_alike(pair):
    main, other = found(pair, "main")["error"], found(pair, "other")["error"]
    assert main == other
    assert "training images NaN or infinite" in main


def test_processes_with_different_jobs_do_not_start(pair):
    assert "1 of 2 processes differ from this one in job or data" in found(pair, "main")["differs"]
    assert found(pair, "other")["differs"] == (
        "process 1 differs from the main one, start all with the same job and data: "
        "scheme.learning_rate: 0.05 there, 0.01 here"
    )


def test_a_process_that_dies_ends_the_others(pair):
    assert not (pair / "main lived").exists()
    assert not (pair / "other lived").exists()
