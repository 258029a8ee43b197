"""Where work waits for a page, and who of several pages is the device."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tailorbird.errors import MeasurementError

POLL_S = 5.0
"""A page that asks for work and finds none is answered after so long, and asks again."""

SILENT_S = 12.0
"""A page that was not heard of for so long is gone."""

MOST_LOST = 3
"""After so many pages that went away in the middle of one piece of work, it is given up."""

_SLICE_S = 0.1
_MOST_LEFT = 1000

Text = Annotated[str, Field(max_length=400)]


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a page says of itself; it is taken for what it is, a claim.

    Args:
        page: the number that it drew when it was opened.
        agent: browser and version.
        machine: model and system.
        cores: that the browser may use.
        isolated: whether it has SharedArrayBuffer, which threads need.
        memory_gb: about how much memory the device has, where the browser tells.
        shown: the state that it shows; it is told at once when that is another.
    """

    page: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    agent: Text
    machine: Text
    cores: Annotated[int, Field(ge=1, le=10_000)]
    isolated: bool
    memory_gb: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    shown: Annotated[str, Field(max_length=20)] = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work for a page.

    Args:
        title: for messages.
        task: what the page is told, as plain data.
        files: that it may fetch.
        inputs: arrays that it may fetch.
    """

    title: str
    task: Mapping[str, object]
    files: tuple[Path, ...]
    inputs: tuple[npt.NDArray[np.float32], ...]


@dataclass
class _Job:
    """A piece of work under way; ``turn`` names the last time that it was handed out."""

    work: Work
    turn: str | None = None
    begun: bool = False
    lost: int = 0
    outputs: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    answer: Mapping[str, Any] | None = None
    fault: str | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None or self.fault is not None


class Desk:
    """Hands one piece of work at a time to one page; all methods may be called from any thread.

    The first page that asks is the device. Another one is told so, and takes over when the first
    says goodbye or is silent. Work that was out then is handed out again from its beginning, and
    what the old page still sends of it is refused.

    Args:
        poll_s: how long a page that finds no work is kept waiting.
        silent_s: how long a page may be silent; more than ``poll_s``.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        poll_s: float = POLL_S,
        silent_s: float = SILENT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll_s, self._silent_s, self._clock = poll_s, silent_s, clock
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._page: Hello | None = None
        self._seen = clock()
        self._job: _Job | None = None
        self._left: set[str] = set()
        self._closed = False

    # for who has work ----------------------------------------------------------------------------

    def page(self, *, wait_s: float, way_out: str) -> Hello:
        """The page that is the device, once there is one.

        Args:
            wait_s: how long to wait for it.
            way_out: what to do where none comes, for messages.

        Raises:
            MeasurementError: when none comes in time.
        """
        begun = self._clock()
        with self._changed:
            while (found := self._present()) is None:
                self._patient(begun, wait_s, f"no browser has opened the page; {way_out}")
            return found

    def ask(
        self, work: Work, *, wait_s: float, limit_s: float, way_out: str
    ) -> tuple[Mapping[str, Any], Mapping[int, npt.NDArray[np.float32]]]:
        """What a page answers: its last words, and the arrays that it sent before them.

        Args:
            work: is done by one page from beginning to end.
            wait_s: how long to wait for a page, at the beginning and whenever it goes away.
            limit_s: how long it may take in all.
            way_out: what to do where no page comes, for messages.

        Raises:
            MeasurementError: when no page comes, it takes too long, or pages are lost over it.
        """
        with self._asking, self._changed:
            job = self._job = _Job(work)
            self._changed.notify_all()
            try:
                self._wait(job, wait_s, limit_s, way_out)
            finally:
                self._job = None
                self._changed.notify_all()
        if job.fault is not None:
            raise MeasurementError(f"{work.title}: {job.fault}")
        assert job.answer is not None  # it is over
        return job.answer, job.outputs

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, job: _Job, wait_s: float, limit_s: float, way_out: str) -> None:
        begun = self._clock()
        while not job.over:
            if self._closed:
                raise MeasurementError(f"{job.work.title}: its page is served no more")
            if self._present() is None:
                what = "the page went away in the middle" if job.begun else "no page is open for it"
                fault = f"{job.work.title}: {what}; {way_out}"
                self._patient(max(begun, self._seen), wait_s, fault)
            else:
                self._changed.wait(_SLICE_S)
            if job.lost >= MOST_LOST and not job.over:
                raise MeasurementError(
                    f"{job.work.title}: the page went away {job.lost} times in the middle of it; "
                    "the device may have too little memory for it, or falls asleep"
                )
            if self._clock() - begun > limit_s and not job.over:
                raise MeasurementError(
                    f"{job.work.title} did not end within {limit_s:g} s; look at the page"
                )

    def _patient(self, begun: float, wait_s: float, fault: str) -> None:
        """Wait a moment for a page.

        Raises:
            MeasurementError: of the fault, when that has been long enough.
        """
        left = begun + wait_s - self._clock()
        if self._closed or left <= 0:
            waited = "it is served no more" if self._closed else f"waited {wait_s:g} s"
            raise MeasurementError(f"{fault} ({waited})")
        self._changed.wait(min(left, _SLICE_S))

    # for the server ------------------------------------------------------------------------------

    def next(self, hello: Hello) -> dict[str, object]:
        """What a page is to do: work, wait, or leave it to another page."""
        until = self._clock() + self._poll_s
        with self._changed:
            self._left.discard(hello.page)
            while True:
                if hello.page in self._left:  # it left while its question was open
                    return {"state": "idle"}
                mine = self._claim(hello)
                if mine and self._job is not None and not self._job.over:
                    return self._hand_out(self._job)
                state, left = "idle" if mine else "elsewhere", until - self._clock()
                if state != hello.shown or self._closed or left <= 0:
                    return {"state": state}
                self._changed.wait(min(left, _SLICE_S))

    def bye(self, page: str) -> None:
        """A page is closed or hidden: another one, or the same one later, does its work."""
        with self._changed:
            if len(self._left) < _MOST_LEFT:
                self._left.add(page)
            if self._page is not None and self._page.page == page:
                self._leave(lost=False)
            self._changed.notify_all()

    def alive(self, turn: str) -> bool:
        """A page is at work; whether it shall go on."""
        with self._changed:
            if self._current(turn) is None:
                return False
            self._seen = self._clock()
            return True

    def work(self, turn: str) -> Work | None:
        """What was handed out in this turn, unless it is out of date."""
        with self._changed:
            job = self._current(turn)
            return job.work if job else None

    def output(self, turn: str, number: int, values: npt.NDArray[np.float32]) -> bool:
        """Take one array; whether it was wanted."""
        with self._changed:
            job = self._current(turn)
            if job is None or not 0 <= number < len(job.work.inputs):
                return False
            job.outputs[number] = values
            self._seen = self._clock()
            return True

    def done(self, turn: str, answer: Mapping[str, Any]) -> bool:
        """Take the last words; whether they were wanted."""
        with self._changed:
            job = self._current(turn)
            if job is None:
                return False
            job.answer = answer
            self._seen = self._clock()
            self._changed.notify_all()
            return True

    def fail(self, turn: str, fault: str) -> None:
        """Give the work up because of what the page sent."""
        with self._changed:
            job = self._current(turn)
            if job is not None:
                job.fault = fault
                self._changed.notify_all()

    def _current(self, turn: str) -> _Job | None:
        job = self._job
        return job if job is not None and not job.over and job.turn == turn else None

    def _present(self) -> Hello | None:
        """The page that is the device; one that is silent is let go here."""
        if self._page is not None and self._clock() - self._seen > self._silent_s:
            self._leave(lost=True)
        return self._page

    def _leave(self, *, lost: bool) -> None:
        self._page = None
        if self._job is not None and self._job.turn is not None:
            self._job.turn = None
            self._job.lost += lost
        self._changed.notify_all()

    def _claim(self, hello: Hello) -> bool:
        present = self._present()
        if present is not None and present.page != hello.page:
            return False
        self._page, self._seen = hello, self._clock()
        if present is None:
            self._changed.notify_all()
        return True

    def _hand_out(self, job: _Job) -> dict[str, object]:
        job.turn, job.begun, job.outputs = secrets.token_hex(8), True, {}
        return {"state": "work", "turn": job.turn, "task": dict(job.work.task)}
