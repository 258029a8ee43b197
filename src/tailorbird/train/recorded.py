"""Steps of several networks on a GPU, recorded as CUDA graphs and replayed on a few streams.

To ask for a kernel takes Python some 10 microseconds, a small kernel 3. A step that is recorded is
asked for as a whole, and what several streams are asked for runs at the same time.

A recorded step repeats what the GPU was told when it was recorded, whatever Python would say by
now. So it is taken only after it has been compared: the third step is made as written, taken back,
and replayed; weights, buffers and the optimiser's state have to agree to the bit, or that network
goes on as written, and the reason is told. So a run that is killed and goes on as written for its
first steps ends in the same bits.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tailorbird.train.beside import Step, Work
from tailorbird.train.draws import python_numbers

STREAMS = 4
"""At most; each holds the activations and gradients of one network."""

_WARM_UP = 2
"""Steps as written before one is recorded: libraries choose kernels, optimisers make state."""


class Recorder(Protocol):
    """Records work on one of several lanes and replays it there; `CudaGraphs` is one."""

    def lanes(self, most: int) -> int:
        """How many lanes there is memory for, 0 to ``most``. Asked once, between steps."""

    def lane(self, number: int) -> AbstractContextManager[object]:
        """Inside, what is asked for is done on that lane."""

    def waits(self, work: Work) -> bool:
        """Do ``work``, and say whether it waited for the device, which no recording can."""

    def record(self, work: Work, lane: int) -> Work:
        """Run ``work`` without doing any of it on the device; what does it all when called.

        Raises:
            RuntimeError: when it can't be recorded.
        """

    def fork(self) -> None:
        """What the lanes are asked for from now on waits for all that was asked for until now."""

    def join(self) -> None:
        """What is asked for from now on, wherever, waits for the lanes."""


class Streams:
    """Makes the steps of several networks: `tailorbird.train.beside.Beside` for GPUs.

    Args:
        recorder: of the device.
        say: told, once, which networks train as written, and why.
        most: lanes at most.
    """

    records: ClassVar[bool] = True

    def __init__(
        self, recorder: Recorder, say: Callable[[str], None], *, most: int = STREAMS
    ) -> None:
        self.recorder, self._say, self._most = recorder, say, most
        self._lanes: int | None = None
        self._recordings: dict[str, _Recording] = {}
        self._held: dict[str, Tensor] = {}

    def take(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors every time, holding the inputs' values. Other shapes begin anew."""
        if not _alike(self._held, inputs):
            self._recordings.clear()
            self._held = {name: value.detach().clone() for name, value in inputs.items()}
        elif self._held:
            torch._foreach_copy_(list(self._held.values()), [inputs[n] for n in self._held])
        return dict(self._held)

    def make(self, steps: Sequence[Step]) -> None:
        """Replay those that are recorded on their lanes, make the others here meanwhile."""
        fresh = []
        try:
            self.recorder.fork()
            for step in steps:
                recording = self._recordings.get(step.name)
                if recording is None or recording.step is not step:
                    recording = self._recordings[step.name] = _Recording(step)
                if recording.due:
                    self._try(recording)
                    fresh.append(recording)
                else:
                    recording.make(self.recorder)
        finally:
            self.recorder.join()  # what is freed from here on is no longer written to
        self._tell(fresh)

    def call(self, works: Sequence[Work]) -> None:
        """One after the other."""
        for work in works:
            work()

    def _try(self, recording: _Recording) -> None:
        if self._lanes is None:
            self._lanes = self.recorder.lanes(self._most)
        # Generators tell graphs what to draw by one tensor for all: those who draw share a lane.
        taken = sum(other.replay is not None for other in self._recordings.values())
        lane = 0 if recording.step.alone or not self._lanes else taken % self._lanes
        recording.record(self.recorder, lane, room=self._lanes > 0)

    def _tell(self, fresh: Sequence[_Recording]) -> None:
        reasons: dict[str, list[str]] = defaultdict(list)
        for recording in fresh:
            if recording.refused is not None:
                reasons[recording.refused].append(recording.step.name)
        for reason, names in reasons.items():
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            self._say(
                f"{len(names)} of {len(self._recordings)} networks ({some}) train step by step "
                f"as written, which is slower than recorded: {reason}"
            )


class _Recording:
    """How one network's step is made: as written, or replayed."""

    def __init__(self, step: Step) -> None:
        self.step, self.lane, self.made = step, 0, 0
        self.replay: Work | None = None
        self.refused: str | None = None

    @property
    def due(self) -> bool:
        """Whether this step is the one to be recorded."""
        return self.made == _WARM_UP and self.replay is None and self.refused is None

    def make(self, recorder: Recorder) -> None:
        """Make a step."""
        self.made += 1
        if self.replay is None:
            self.step()
            return
        with recorder.lane(self.lane):
            self.step.prepare()
            self.replay()
            self.step.conclude()

    def record(self, recorder: Recorder, lane: int, *, room: bool) -> None:
        """Make a step as written, and replayed from where it began; keep the replay if they agree.

        Args:
            room: whether there is memory for it.
        """
        step, self.lane = self.step, lane
        self.made += 1
        self.refused = step.unrecordable
        if not room:
            self.refused = "there is too little memory left on the GPU"
        if self.refused is not None:
            step()
            return
        step.prepare()
        changed, plain = step.changed(), python_numbers(step.network)
        before = _copies(changed)
        waits = recorder.waits(step.compute)
        after = _copies(changed)
        if waits:
            self.refused = "its passes wait for the device, as `if x.sum() > 0` does"
        elif python_numbers(step.network) != plain:
            self.refused = "its passes count or draw in Python"
        elif [id(value) for value in step.changed()] != [id(value) for value in changed]:
            self.refused = "its state is not the same tensors after a step"
        else:
            self._compare(recorder, changed, before, after)
        step.conclude()

    def _compare(
        self,
        recorder: Recorder,
        changed: Sequence[Tensor],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
    ) -> None:
        """Record, and replay what was just made; the tensors hold ``after`` at the end."""
        try:
            replay = recorder.record(self.step.compute, self.lane)
        except RuntimeError as error:
            self.step.network.zero_grad(set_to_none=True)
            self.refused = _cause(error)
            return
        _put(changed, before)
        recorder.fork()
        with recorder.lane(self.lane):
            self.step.prepare()
            replay()
        recorder.join()
        if all(torch.equal(value, wanted) for value, wanted in zip(changed, after, strict=True)):
            self.replay = replay
        else:
            _put(changed, after)
            self.refused = "recorded, it computes other numbers"


class CudaGraphs:
    """Records CUDA graphs, one stream and one pool of memory per lane.

    Graphs of one lane are replayed one after the other and leave nothing behind in their pool,
    so they may share it: a lane holds as much as its largest step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: list[torch.cuda.Stream] = []
        self._pools: list[Any] = []  # opaque, by torch

    def lanes(self, most: int) -> int:
        """As many as leave as much free as a step takes as written."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        count = lanes_that_fit(free + kept, kept, most)
        make: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._streams = [make(self.device) for _ in range(count)]
        self._pools = [torch.cuda.graph_pool_handle() for _ in range(count)]
        return count

    def lane(self, number: int) -> AbstractContextManager[object]:
        """The lane's stream."""
        return torch.cuda.stream(self._streams[number])

    def waits(self, work: Work) -> bool:
        """As PyTorch tells it: a capture that fails leaves its memory in disorder."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return any("synchronizing CUDA operation" in str(one.message) for one in told)

    def record(self, work: Work, lane: int) -> Work:
        """Capture; see `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),  # back, if capturing fails
            torch.cuda.graph(
                graph,
                pool=self._pools[lane],
                stream=self._streams[lane],
                capture_error_mode="thread_local",
            ),
        ):
            work()
        return graph.replay

    def fork(self) -> None:
        """See `Recorder.fork`."""
        here = torch.cuda.current_stream(self.device)
        for stream in self._streams:
            stream.wait_stream(here)

    def join(self) -> None:
        """See `Recorder.join`."""
        here = torch.cuda.current_stream(self.device)
        for stream in self._streams:
            here.wait_stream(stream)


def lanes_that_fit(free: int, step: int, most: int) -> int:
    """Lanes that ``free`` bytes are enough for, with as much as one more step's left over.

    Args:
        free: bytes to be had between two steps.
        step: bytes that the largest step takes for its time.

    Example:
        >>> [lanes_that_fit(free, 100, 4) for free in (150, 250, 1000)]
        [0, 1, 4]
    """
    return max(0, min(most, free // max(1, step) - 1))


def _alike(held: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> bool:
    return held.keys() == inputs.keys() and all(
        (held[name].shape, held[name].dtype, held[name].device)
        == (value.shape, value.dtype, value.device)
        for name, value in inputs.items()
    )


def _cause(error: BaseException) -> str:
    """What went wrong first: an error while capturing is followed by one of the capture's end."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
