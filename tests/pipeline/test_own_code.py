"""A teacher with modules of the user's own that no tracer follows: a job goes to its end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from tailorbird.demo import digits_net
from tailorbird.errors import StoreError
from tailorbird.export.bundle import load_student
from tailorbird.fit.ship import BUNDLE
from tests.house.makers import OPTIONS, seeded

from .makers import job, run_job

LIMITS = {"edge": {"macs": "0.99x"}}


class Choosing(nn.Module):
    """Branches on values, holds a function, and overwrites what its backward needs."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(5, 5), function

    def forward(self, x):
        x = x.clone()
        x[:, :5] = self.layer(x[:, :5])
        return self.function(x) if x.sum() > 0 else x


class Net(nn.Module):
    """The leaf stands behind the head, so every student has it."""

    def __init__(self, function):
        super().__init__()
        self.body, self.own = digits_net(width=8, depth=1), Choosing(function)

    def forward(self, x):
        return self.own(self.body(x))


class Told:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def task(self, name, total):
        from tailorbird.progress import Silent

        return Silent().task(name, total)


def asked(run, function):
    network = seeded(lambda: Net(function)).eval()
    options = replace(OPTIONS, memory_mb=64, leaves=("own",), pruned=2)
    return job(run, limits=LIMITS, teacher=network, donors={}, options=options)


def test_code_of_the_users_own_is_named_and_needed_to_rebuild(tmp_path):
    told = Told()
    report = run_job(asked(tmp_path / "run", torch.tanh), progress=told)
    [target] = report.targets
    path = f"{__name__}:Choosing"
    home = tmp_path / "run" / "students" / "edge"
    assert target.met and target.replaced
    assert (target.code, target.unstored) == ((path,), None)
    assert json.loads((home / "student.json").read_text())["spec"]["code"] == [path]
    assert any(path in line and "student.json" in line for line in told.lines)
    with pytest.raises(StoreError, match="imported and run"):
        load_student(home)
    student = load_student(home, trust=target.code)
    assert student.module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    again = Told()
    assert run_job(asked(tmp_path / "run", torch.tanh), progress=again).targets == report.targets
    assert any("holds this job, finished" in line for line in again.lines)


def test_what_cannot_be_stored_is_exported_all_the_same(tmp_path):
    told = Told()
    report = run_job(asked(tmp_path / "run", lambda x: x), progress=told)
    [target] = report.targets
    home = tmp_path / "run" / "students" / "edge"
    assert target.met and target.replaced
    assert (home / "model.onnx").exists()
    assert "can't be stored" in target.unstored
    assert not any((home / name).exists() for name in BUNDLE)
    assert any("are exported, not stored" in line for line in told.lines)
    again = Told()
    assert run_job(asked(tmp_path / "run", lambda x: x), progress=again).targets == report.targets
    assert any("holds this job, finished" in line for line in again.lines)
