"""Runs a job in processes that are killed; started by ``test_kill.py``.

Runs the job once itself and forks, so that a process costs no start-up. ``argv``: folder, and
comma-separated points: ``s0.3`` for after that share of a whole run's seconds and ``w12`` for right
before the twelfth file is put in place.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.fakes import FakeDevice
from tests.pipeline.makers import job, run_job

LIMITS = {"edge": {"latency": "0.6x"}, "both": {"latency": "0.75x", "params": "0.97x"}}


def die_at_write(number):
    replace, seen = Path.replace, [0]

    def dying(path, target):
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = dying


def work(run):
    device = FakeDevice(base_ms=0.001, noise=0.04)
    run_job(job(run, limits=LIMITS, device=device, contenders=3))


def run_once(run, *, seconds=None, write=0):
    """Whether a process came to its end."""
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            if write:
                die_at_write(write)
            work(run)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if seconds is not None and time.monotonic() - start > seconds:
            os.kill(process, signal.SIGKILL)
            seconds = None
        time.sleep(0.002)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"the job failed in {run}")
    return os.WIFEXITED(status)


def main():
    folder, plan = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    start = time.monotonic()
    work(folder / "reference")  # in this process, so that what is imported late is there for all
    whole = time.monotonic() - start
    run, killed = folder / "killed", 0
    for point in plan.split(","):
        if point[0] == "s":
            finished = run_once(run, seconds=float(point[1:]) * whole)
        else:
            finished = run_once(run, write=int(point[1:]))
        killed += not finished
    assert run_once(run)
    sys.stdout.write(f"killed {killed}\nwhole {whole:.1f}\n")


if __name__ == "__main__":
    main()
