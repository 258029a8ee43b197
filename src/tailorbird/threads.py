"""Small matrix products on one thread.

A product of a few thousand numbers takes microseconds; handing its parts to a pool of threads takes
as long, and on a machine whose cores are busy each product waits until all threads had their turn.
A search is some ten thousand such products.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from types import TracebackType

from threadpoolctl import ThreadpoolController


class _Own(threading.local):
    """What one thread holds."""

    depth: int = 0
    limits: AbstractContextManager[object] | None = None


class _Hold(ContextDecorator):
    """BLAS and OpenMP as `threadpoolctl` holds them, torch by its own count.

    OpenMP counts for each thread that uses it. OpenBLAS has one count, which threadpoolctl leaves
    to the first thread that asks: another that comes meanwhile computes as it finds it. Torch's
    count is the process's, too: the first that comes notes it, the last that goes puts it back.
    """

    def __init__(self) -> None:
        self._own = _Own()
        self._lock = threading.Lock()
        self._holders = 0
        self._torch: int | None = None
        self._pools: ThreadpoolController | None = None
        self._modules = 0

    def __enter__(self) -> None:
        own = self._own
        if own.depth == 0:
            with self._lock:
                if self._holders == 0:
                    self._torch = _torch_threads()
                self._holders += 1
                own.limits = self._look().limit(limits=1)  # first, as torch sets OpenMP's, too
                if self._torch not in (None, 1):
                    _set_torch_threads(1)
            own.limits.__enter__()
        own.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        own = self._own
        own.depth -= 1
        if own.depth:
            return
        limits, own.limits = own.limits, None
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._torch not in (None, 1):
                _set_torch_threads(self._torch or 1)
        if limits is not None:  # last, for the same reason
            limits.__exit__(kind, error, trace)

    def _look(self) -> ThreadpoolController:
        """The libraries that are loaded; to look takes milliseconds, and imports bring new ones."""
        count = len(sys.modules)
        if self._pools is None or count != self._modules:
            self._pools, self._modules = ThreadpoolController(), count
        return self._pools


_HOLD = _Hold()


def one_thread() -> _Hold:
    """Hold the thread counts of BLAS, OpenMP and, where it is imported, torch at 1 for a while.

    They are put back as found, after an error too. Inside another hold this costs next to nothing.
    BLAS and torch count for the whole process, so what its other threads multiply meanwhile is held
    as well.

    Returns:
        A context manager that is a decorator, too.

    Example:
        >>> import numpy as np
        >>> with one_thread():
        ...     total = (np.ones((2, 3)) @ np.ones((3, 2))).sum()
        >>> @one_thread()
        ... def product(a, b):
        ...     return a @ b
        >>> float(total), product(np.ones(3), np.ones(3)).item()
        (12.0, 3.0)
    """
    return _HOLD


def _torch_threads() -> int | None:
    """Torch's count, ``None`` where torch is not imported (or being imported right now)."""
    get: Callable[[], int] | None = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return None if get is None else get()


def _set_torch_threads(count: int) -> None:
    put: Callable[[int], None] | None = getattr(sys.modules.get("torch"), "set_num_threads", None)
    if put is not None:
        put(count)
