"""Several processes that train together, on one machine or more, as ``torchrun`` starts them.

A process alone is a world of one, whose methods do nothing. Each process holds all weights; what
they exchange is sums of gradients and figures (gloo on CPUs, NCCL on GPUs). One that ends with an
error leaves the others waiting for it: ``torchrun`` notices and ends them.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist

from tailorbird.errors import ConfigError, TrainingError
from tailorbird.train.checkpoint import Found, Json
from tailorbird.train.precision import compute_device

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, the main one's validations and checkpoints included.

It ends no hang that ``torchrun`` wouldn't end sooner; it has to outlast the longest validation.
"""

_BUCKET_BYTES = 32 * 2**20
"""Sums travel in pieces of this size."""

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells every process."""


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Args:
        device: where this process computes.
        rank: number of this process, from 0.
        size: how many there are.

    Example:
        >>> alone, figures = World(torch.device("cpu")), torch.ones(2)
        >>> alone.sum([figures])
        >>> alone.is_main, figures.tolist(), alone.from_main(b"state")
        (True, [1.0, 1.0], b'state')
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes, shows and validates."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, **in place**, to the same bits in all.

        Args:
            tensors: on the device; the same shapes and types in the same order in every process.
        """
        if self.size > 1:
            with self._talk():
                self._sum(tensors)

    def from_main(self, content: bytes) -> bytes:
        """What the main process gave; what the others gave is ignored."""
        if self.size == 1:
            return content
        with self._talk():
            return self._from_main(content)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            # A sum, since NCCL's own barrier guesses the device.
            self.sum([torch.zeros(1, device=self.device)])

    def agree(self, made_of: Mapping[str, Json]) -> None:
        """Refuse to work beside processes that do something else.

        Args:
            made_of: what the work is made of, by name.

        Raises:
            ConfigError: in every process where one differs; its own says in what.
        """
        mine = json.loads(json.dumps(made_of))
        main = json.loads(self.from_main(json.dumps(made_of).encode()))
        changed = [
            f"process {self.rank} differs from the main one, start all with the same job and "
            f"data: {name}: {main.get(name)!r} there, {mine.get(name)!r} here"
            for name in sorted({*main, *mine})
            if main.get(name) != mine.get(name)
        ]
        differing = torch.tensor([float(bool(changed))], device=self.device)
        self.sum([differing])
        if changed:
            raise ConfigError(changed)
        if differing.item():
            raise ConfigError(
                f"{differing.item():.0f} of {self.size} processes differ from this one in "
                "job or data, and say in what; start all with the same"
            )

    def state_from_main(self, found: Found | None) -> Found | None:
        """The tensors and the record that the main process found, in all processes."""
        if self.size == 1:
            return found
        tensors, record = ({}, None) if found is None else found
        known = json.loads(self.from_main(json.dumps(record).encode()))
        content = self.from_main(save(tensors))
        return None if known is None else (load(content), known)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        under_way = []
        for bucket in _buckets(tensors):
            flat = torch.empty(
                sum(one.numel() for one in bucket), dtype=bucket[0].dtype, device=self.device
            )
            parts = torch.split(flat, [one.numel() for one in bucket])
            shaped = [part.view(one.shape) for part, one in zip(parts, bucket, strict=True)]
            torch._foreach_copy_(shaped, bucket)
            under_way.append((dist.all_reduce(flat, async_op=True), bucket, shaped))
        for work, bucket, shaped in under_way:
            if work is not None:
                work.wait()
            torch._foreach_copy_(bucket, shaped)

    def _from_main(self, content: bytes) -> bytes:
        length = torch.tensor([len(content)], dtype=torch.int64, device=self.device)
        dist.broadcast(length, src=0)
        given = bytearray(content) if self.is_main else bytearray(int(length))
        if not given:
            return b""
        carrier = torch.frombuffer(given, dtype=torch.uint8).to(self.device)
        dist.broadcast(carrier, src=0)
        return carrier.cpu().numpy().tobytes()

    @contextmanager
    def _talk(self) -> Iterator[None]:
        """Say what it means when the others don't answer."""
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.rank} of {self.size}: another process has ended or can't be "
                f"reached ({str(error).splitlines()[0]}); its own words say why; start all of them "
                "again, checkpoints are kept"
            ) from error


def is_main() -> bool:
    """Whether this process is the one that writes and shows, also before it has joined."""
    return int(os.environ.get("RANK", "0")) == 0 or not _launched()


@contextmanager
def joined(device: torch.device | str | None = None) -> Iterator[World]:
    """Join the processes that ``torchrun`` started; a world of one where it didn't.

    All leave together, but for an error, after which nobody waits for the others. A group of
    processes that is there already is used.

    Args:
        device: None is CUDA where there is some, else the CPU. On GPUs each process of a machine
            has its own, whatever the index given.

    Raises:
        ConfigError: where there are more processes on a machine than GPUs.
    """
    known = dist.is_available() and dist.is_initialized()
    if not known and not _launched():
        yield World(compute_device(device))
        return
    where = _own_device(compute_device(device))
    if not known:
        dist.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            timeout=PATIENCE,
            device_id=where if where.type == "cuda" else None,
        )
        # Left open until the process ends: what follows may want to join again.
        atexit.register(dist.destroy_process_group)
    world = World(where, dist.get_rank(), dist.get_world_size())
    yield world
    world.barrier()


def _launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def _own_device(wanted: torch.device) -> torch.device:
    if wanted.type != "cuda":
        return wanted
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"process {local} (from 0) of this machine has no GPU of its own, there are {count}; "
            f"start {count} processes per machine (torchrun --nproc-per-node {count}), or train on "
            "device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _buckets(tensors: Sequence[Tensor], *, limit: int = _BUCKET_BYTES) -> list[list[Tensor]]:
    """The tensors in order, in runs of one type and of at most ``limit`` bytes."""
    found: list[list[Tensor]] = []
    room = 0
    for one in tensors:
        size = one.numel() * one.element_size()
        if not found or one.dtype != found[-1][0].dtype or size > room:
            found.append([])
            room = limit
        found[-1].append(one)
        room -= size
    return found
