"""The time of a training run: what is spent of it, and how many steps fit into what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TIMING_STEPS = 5
"""Steps after which their speed is trusted enough to shorten the schedule."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Where a training run pauses: it goes on from there later, as if it had never stopped.

    Args:
        at: share of the schedule's steps that are made by then, above 0 and below 1.
        spent: share of the time that may be spent by then, where it is limited.
    """

    at: float
    spent: float = 1.0


class Clock:
    """Wall time of a run over all its sittings, and the steps that it has time for.

    Where there is a limit, `total` follows the speed of the steps so far: it shrinks until the run
    fits, so that a schedule over `total` steps ends as it should, and grows back where steps get
    faster. When the time is spent, it is the step at hand.

    Args:
        planned: steps of the whole run.
        per_epoch: steps between two validations, whose time is spread over them.
        limit: in seconds; None for all the time there is.
        pause: where this sitting ends; None for the end of the run.
        now: tells the time in seconds.

    Example:
        >>> clock = Clock(100, 10, limit=60, now=iter(range(0, 100, 2)).__next__)
        >>> clock.open()
        >>> clock.count(5, at=5)  # at second 4: 2 s for 5 steps, 54 s (at second 6) for the others
        >>> clock.total
        100
    """

    def __init__(
        self,
        planned: int = 0,
        per_epoch: int = 1,
        *,
        limit: float | None = None,
        pause: Pause | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.planned = self.total = planned
        self.per_epoch = per_epoch
        self._share = 1.0 if pause is None else pause.at
        spent = 1.0 if pause is None else pause.spent
        self.limit = math.inf if limit is None else spent * limit
        self._now = now
        self._began = self._since = now()
        self._steps, self._stepping, self._validation = 0, 0.0, 0.0

    def resume(self, spent: float, total: int | None = None) -> None:
        """Count on from what earlier sittings spent, in seconds, and from their `total`."""
        self._began -= spent
        self.total = total or self.total

    @property
    def end(self) -> int:
        """The step that this sitting goes to: where it pauses, or the total."""
        return min(self.total, max(1, round(self._share * self.total)))

    @property
    def seconds(self) -> float:
        """Wall time so far, all sittings."""
        return self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds until the limit; below 0 when it has passed."""
        return self.limit - self.seconds

    def open(self) -> None:
        """Steps are made from here on."""
        self._since = self._now()

    def count(self, steps: int, *, at: int) -> None:
        """So many more steps were made, the last of which is number ``at`` from 1."""
        now = self._now()
        self._stepping += now - self._since
        self._since = now
        self._steps += steps
        if self.limit == math.inf:
            return
        left = self.left
        if left <= 0:
            self.total = max(at, int(at / self._share))
        elif self._steps >= _TIMING_STEPS:
            pace = self._stepping / self._steps + self._validation / self.per_epoch
            possible = int((at + max(1, int(left / pace))) / self._share)
            # A guess within 2 % of the plan is no reason to leave it.
            self.total = self.planned if possible >= 0.98 * self.planned else possible

    @contextmanager
    def validating(self) -> Iterator[None]:
        """What runs inside is done once per epoch."""
        began = self._now()
        yield
        self._validation = self._now() - began
