"""Figures reach TensorBoard's writer where there is one; without it the way to get it is told."""

import builtins
import sys
from types import SimpleNamespace

import pytest

from tailorbird.errors import ConfigError
from tailorbird.report.tensorboard import TensorBoard
from tailorbird.supernet.train_state import SupernetEpoch, SupernetSteps

EPOCH = SupernetEpoch(
    epoch=2,
    step=20,
    phase="shrink",
    loss=0.5,
    full_loss=None,
    networks=4,
    learning_rate=0.1,
    images_per_second=99.0,
    seconds=3.0,
    largest=0.75,
)
STEPS = SupernetSteps(step=11, phase="shrink", loss=0.7, learning_rate=0.2, images_per_second=50.0)


class Writer:
    made: list["Writer"] = []  # noqa: RUF012  # emptied by the fixture

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.scalars, self.closed = log_dir, purge_step, {}, False
        Writer.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    Writer.made.clear()
    installed = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", installed)


def test_figures_are_entered_at_their_steps(fake, tmp_path):
    with TensorBoard(tmp_path / "board") as board:
        board.steps(STEPS)
        board.epoch(EPOCH)
    [writer] = Writer.made
    assert writer.closed
    assert writer.log_dir == str(tmp_path / "board")
    assert writer.purge_step == 11  # a run that goes on drops what was written of later steps
    assert writer.scalars["loss/step", 11] == 0.7
    assert writer.scalars["accuracy/largest", 20] == 0.75
    assert not any("full" in tag or "smallest" in tag for tag, _ in writer.scalars)


def test_nothing_is_opened_where_nothing_is_entered(fake, tmp_path):
    with TensorBoard(tmp_path):
        pass
    assert Writer.made == []


def test_missing_it_is_told_how_to_get_it(monkeypatch, tmp_path):
    found = builtins.__import__

    def without(name, *rest):
        if name == "tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name=name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="needs TensorBoard, which is not installed") as caught:
        TensorBoard(tmp_path)
    assert 'pip install "tailorbird[tensorboard]"' in str(caught.value)


def test_without_a_folder_nothing_is_written(fake):
    with TensorBoard(None) as board:
        board.steps(STEPS)
        board.epoch(EPOCH)
    assert Writer.made == []
