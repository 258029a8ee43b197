"""Kill -9 at any moment, run again: the end is that of a run that was let alone."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird.report.record import RunReport

from .makers import figures, tensors

KILLS = 4


def plan(seed):
    """Points of kills, by turns right before a random file is put in place and at random moments:
    two early, two all over the run.
    """
    draw = random.Random(seed)
    return ",".join(
        point
        for most in (25, 75)
        for point in (f"w{draw.randint(1, most)}", f"s{draw.random() * most / 75:.3f}")
    )


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_let_alone(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.kill_driver", str(tmp_path), plan(7)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    killed = int(found.stdout.splitlines()[0].removeprefix("killed "))
    assert killed >= KILLS // 2, "too few processes were killed to tell"
    reference = RunReport.load(tmp_path / "reference" / "report.json")
    assert all(target.met for target in reference.targets)
    assert any(target.replaced for target in reference.targets)
    report = RunReport.load(tmp_path / "killed" / "report.json")
    assert figures(replace(report, run="")) == figures(replace(reference, run=""))
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "reference")
