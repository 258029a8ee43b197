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

PLANS, KILLS = 2, 4


def plans(seed):
    """Points of kills, by turns right before a random file is put in place and at random moments:
    some early in one plan, all over the run in the other.
    """
    draw = random.Random(seed)
    return [
        ",".join(
            point
            for _ in range(KILLS // 2)
            for point in (f"w{draw.randint(1, most)}", f"s{draw.random() * most / 75:.3f}")
        )
        for most in (25, 75)
    ]


@pytest.mark.slow
def test_killed_runs_end_like_one_that_was_let_alone(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.kill_driver", str(tmp_path), *plans(7)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    *lines, _ = found.stdout.splitlines()
    kills = [int(line.split()[1]) for line in lines]
    assert len(kills) == PLANS
    assert sum(kills) >= KILLS, "too few processes were killed to tell"
    reference = RunReport.load(tmp_path / "reference" / "report.json")
    assert all(target.met for target in reference.targets)
    assert any(target.replaced for target in reference.targets)
    for number in range(PLANS):
        report = RunReport.load(tmp_path / f"killed{number}" / "report.json")
        assert figures(replace(report, run="")) == figures(replace(reference, run="")), number
        assert tensors(tmp_path / f"killed{number}") == tensors(tmp_path / "reference"), number
