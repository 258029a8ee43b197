"""Training steps of several networks that share nothing, made beside each other.

A step of a small network is many small pieces of work. On a CPU, handing each of them to all cores
costs more than it saves, while whole steps run on one core each without a word between them: that
is a `Crew`. On a GPU, asking for a piece takes longer than the piece: `tailorbird.train.recorded`.

What a network ends with does not depend on what is trained beside it: no numbers pass between them,
and those that draw from a global generator take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Work = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One network's training step, made again and again.

    Args:
        name: the network's, distinct among those beside it.
        network: in training.
        prepare: what Python says first: the rate, a seed.
        compute: forward, backward, update. Tensors alone decide what comes of it; inputs are read
            where `Beside.take` put them.
        conclude: what is left for Python: to count.
        changed: the tensors that ``compute`` changes, in an order that stays.
        alone: no other network's step may run at the same time.
        unrecordable: what is known to forbid that ``compute`` is recorded.
    """

    name: str
    network: nn.Module
    prepare: Work
    compute: Work
    conclude: Work
    changed: Callable[[], list[Tensor]]
    alone: bool = False
    unrecordable: str | None = None

    def __call__(self) -> None:
        """Make the step."""
        self.prepare()
        self.compute()
        self.conclude()


class Beside(Protocol):
    """Makes the steps of several networks.

    Attributes:
        records: whether steps are recorded: then the rate has to be a tensor that they read.
    """

    records: ClassVar[bool]

    def take(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Where steps find the tensors of a batch that they all read, by name."""

    def make(self, steps: Sequence[Step]) -> None:
        """Make one step of each network."""

    def call(self, works: Sequence[Work]) -> None:
        """Do other work on each network, which shares and draws nothing."""


@dataclass(frozen=True)
class Crew:
    """Threads of Python that work side by side, each with some of torch's threads.

    Sums of floating point numbers depend on how many threads share them: so ``threads`` holds for
    every step, however few there are to make, and results depend on it, but not on ``workers``.

    Args:
        workers: at work at a time; 1 does one step after the other, with torch's threads as found.
        threads: torch's, for each worker.

    Example:
        >>> made: list[int] = []
        >>> Crew(workers=2).call([lambda n=n: made.append(n) for n in range(4)])
        >>> sorted(made)
        [0, 1, 2, 3]
    """

    records: ClassVar[bool] = False

    workers: int = 1
    threads: int = 1

    def take(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The inputs as they are."""
        return inputs

    def make(self, steps: Sequence[Step]) -> None:
        """Those that bear company first, then one after the other those that don't.

        An error is raised once all that were begun have ended; of several, that of the first.
        """
        self.call([step for step in steps if not step.alone])
        for step in steps:
            if step.alone:
                self.call([step])

    def call(self, works: Sequence[Work]) -> None:
        """See `make`."""
        if self.workers == 1:
            for work in works:
                work()
            return
        with _torch_threads(self.threads):
            if len(works) == 1:
                works[0]()
            elif works:
                self._share_out(works)

    def _share_out(self, works: Sequence[Work]) -> None:
        count = min(self.workers, len(works))
        with ThreadPoolExecutor(count, "step", torch.set_num_threads, (self.threads,)) as pool:
            try:
                for made in [pool.submit(work) for work in works]:
                    made.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's threads for a while, here and in threads that begin meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
