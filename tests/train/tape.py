"""What a CUDA graph does, on the CPU: operations are recorded once and repeated as they were."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_WAIT = torch.ops.aten._local_scalar_dense.default


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += function is _WAIT
        return function(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """Notes every operation with its numbers, and takes back what it wrote into older tensors."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.overwritten = [], {}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is _WAIT:
            raise RuntimeError("operation not permitted when stream is capturing\nand more words")
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    self._keep(tensor)
        results = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, results))
        tree_map_only(Tensor, lambda t: self.made.setdefault(id(t), t), results)
        return results

    def _keep(self, tensor):
        if id(tensor) not in self.made and id(tensor) not in self.overwritten:
            with torch.utils._python_dispatch._disable_current_modes():
                self.overwritten[id(tensor)] = tensor, tensor.detach().clone()

    @torch.no_grad()
    def take_back(self):
        for tensor, value in self.overwritten.values():
            tensor.copy_(value)

    @torch.no_grad()
    def repeat(self):
        now = {}

        def current(tensor):
            return now.get(id(tensor), tensor)

        for function, args, kwargs, results in self.calls:
            given, named = tree_map_only(Tensor, current, (args, kwargs))
            again = function(*given, **named)
            for old, new in zip(_flat(results), _flat(again), strict=True):
                if id(old) not in self.overwritten:
                    now[id(old)] = new


class Tape:
    """A `Recorder` without a GPU. Lanes do as asked at once; what was asked is noted."""

    def __init__(self, room=4, *, spoil=None, blind=False):
        self.room, self.spoil, self.blind = room, spoil, blind
        self.recorded, self.replayed, self.used = 0, 0, []
        self._lane = None

    def lanes(self, most):
        return min(self.room, most)

    @contextmanager
    def lane(self, number):
        self._lane = number
        try:
            yield
        finally:
            self._lane = None

    def waits(self, work):
        with Waits() as waits:
            work()
        return waits.found > 0 and not self.blind

    def record(self, work, lane):
        recording = Recording()
        try:
            with recording:
                work()
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error in it") from error
        finally:
            recording.take_back()
        self.recorded += 1

        def replay():
            assert self._lane == lane, "replayed elsewhere than recorded"
            self.replayed += 1
            self.used.append(lane)
            recording.repeat()
            if self.spoil is not None:
                self.spoil()

        return replay

    def fork(self):
        """Everything is in order here."""

    def join(self):
        """Everything is in order here."""


def _flat(results):
    found = []
    tree_map_only(Tensor, found.append, results)
    return found
