"""Training figures for TensorBoard, where it is installed and asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tailorbird.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType

    from tailorbird.supernet.train_state import SupernetEpoch, SupernetSteps


class Writer(Protocol):
    """The part of TensorBoard's writer that is used."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Enter one figure."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Writes event files into a folder; a run that goes on adds a file that takes over there.

    Args:
        folder: made when missing; ``None`` to write nothing.

    Raises:
        ConfigError: when TensorBoard isn't installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Writer | None = None
        if folder is None:
            return
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise ConfigError(
                "tensorboard: true needs TensorBoard, which is not installed; "
                '`pip install "tailorbird[tensorboard]"`, or leave it out'
            ) from error
        self._make = module.SummaryWriter

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def epoch(self, epoch: SupernetEpoch) -> None:
        """Enter mean loss, accuracies and speed of an epoch."""
        figures = {
            "loss/epoch": epoch.loss,
            "loss/full network": epoch.full_loss,
            "accuracy/largest": epoch.largest,
            "accuracy/smallest": epoch.smallest,
            "speed/images per second": epoch.images_per_second,
            "networks per step": epoch.networks,
        }
        self._enter(figures, epoch.step)

    def steps(self, steps: SupernetSteps) -> None:
        """Enter loss and learning rate of the latest step."""
        self._enter({"loss/step": steps.loss, "learning rate": steps.learning_rate}, steps.step)

    def _enter(self, figures: dict[str, float | None], step: int) -> None:
        if self._folder is None:
            return
        writer = self._open(step)
        for tag, value in figures.items():
            if value is not None:
                writer.add_scalar(tag, value, step)

    def _open(self, step: int) -> Writer:
        """The writer, opened at the first figure; earlier entries of later steps are dropped."""
        if self._writer is None:
            made: Writer = self._make(log_dir=str(self._folder), purge_step=step)
            self._writer = made
        return self._writer
