"""What both flows try before anything is trained: images, devices, the speed of networks here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tailorbird.copying import copy_network
from tailorbird.data.images import ImageData, classes_in
from tailorbird.errors import ExportError, MeasurementError
from tailorbird.export.exporters import Exporter
from tailorbird.fit.bench import time_networks, try_out
from tailorbird.fit.candidates import Network
from tailorbird.fit.judge import judged_on
from tailorbird.measure.counts import count
from tailorbird.measure.guarded import too_many_threads
from tailorbird.report.words import figure
from tailorbird.targets import LATENCY, Target
from tailorbird.train.precision import autocast, compute_device, lay_out

LONG_ENOUGH_S = 0.1
"""A pass that takes this long tells the speed."""

_FEW, _PASSES = 8, 4
"""Images in the first passes; passes of each number of images, at most."""

Say = Callable[[str], None]
Now = Callable[[], float]


def tell_images(data: ImageData, say: Say) -> None:
    """Say how many images serve what, and what was done to them."""
    classes = f", {classes_in(data)} classes" if data.labelled else ", no labels"
    counts = ", ".join(f"{number} {name}" for name, number in data.size.items() if number)
    say(f"data: {counts} images{classes}; students are chosen on the validation images")
    say(f"data: accuracies in the report are of the {judged_on(data)}")
    for note in data.told:
        say(f"data: {note}")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a network takes for one image here, in seconds.

    Args:
        forward_s: to answer it.
        step_s: to learn from it: forward and backward.
        read_s: to read it from the data set.
    """

    forward_s: float
    step_s: float
    read_s: float = 0.0


def speed_of(network: nn.Module, data: ImageData, *, most: int, now: Now = time.monotonic) -> Speed:
    """Time a copy of a network on training images; the network and random state stay as they are.

    Cost: a few passes of `LONG_ENOUGH_S`, or of a few images where those take longer.

    Args:
        network: takes images of the data.
        data: images.
        most: images per pass, at most.
        now: tells the time in seconds.
    """
    device = compute_device()
    twin = copy_network(network).to(device).eval().requires_grad_()
    size = max(2, min(most, len(data.train)))
    start = now()
    images = data.train.sample(size).to(device)
    read = (now() - start) / len(images)
    layout = lay_out(twin, images[:2])
    used = _FEW
    while True:
        used = min(used, len(images))
        forward = _best(partial(_pass, twin, images[:used], layout, now))
        if forward >= LONG_ENOUGH_S or used == len(images):
            break
        used *= 2
    step = 3 * forward
    with torch.random.fork_rng(devices=[]), suppress(RuntimeError):  # training will tell
        step = _best(partial(_pass, twin.train(), images[:used], layout, now, learn=True))
    return Speed(forward_s=forward / used, step_s=step / used, read_s=read)


def _best(one_pass: Callable[[], float]) -> float:
    """Seconds of the quickest of some passes: the first is slow, others are disturbed.

    Passes end once they have taken ten times what is long enough, all together.
    """
    found: list[float] = []
    while len(found) < _PASSES and (len(found) < 2 or sum(found) < 10 * LONG_ENOUGH_S):
        found.append(one_pass())
    return min(found)


def _pass(
    network: nn.Module,
    images: Tensor,
    layout: torch.memory_format,
    now: Now,
    *,
    learn: bool = False,
) -> float:
    """Seconds of one pass of images (n, C, H, W)."""
    start = now()
    images = images.contiguous(memory_format=layout)
    with torch.set_grad_enabled(learn), autocast(images.device, "auto", network):
        loss = network(images).float().square().mean()
    if learn:
        loss.backward()
    loss.item()  # waits for a GPU
    return now() - start


@dataclass(frozen=True)
class Trial:
    """What came of trying devices.

    Args:
        file_s: device's key -> seconds that a file took to be exported and timed there.
        problems: why no target can be met.
    """

    file_s: Mapping[str, float]
    problems: tuple[str, ...]


def try_devices(
    targets: Sequence[Target],
    networks: Mapping[str, Network],
    exporter: Exporter,
    say: Say,
    *,
    now: Now = time.monotonic,
) -> Trial:
    """Time networks on every device, and say what targets allow; a table's place is not tried.

    Args:
        targets: whose devices are tried, each once.
        networks: what it is called -> the reference, and maybe the smallest that there is.
        exporter: makes files of them.
        say: told what was found.
        now: tells the time in seconds.
    """
    counted = {
        name: count(one.module, one.input_shape).as_metrics() for name, one in networks.items()
    }
    seconds: dict[str, float] = {}
    silent: list[str] = []
    for key, place in {target.place.key: target.place for target in targets}.items():
        figures = counted
        if place.device is not None:
            if waiting := too_many_threads(place.device):
                say(waiting)
            start = now()
            try:
                try_out(place.device, exporter)
                found = time_networks(list(networks.values()), place.device, exporter)
            except (MeasurementError, ExportError) as error:
                silent.append(str(error))
                say(f"device {key} does not answer, so that its targets can't be met: {error}")
                continue
            seconds[key] = (now() - start) / len(networks)
            took = dict(zip(networks, (one.median_ms for one in found), strict=True))
            words = (f"the {name} takes {figure(LATENCY, ms)}" for name, ms in took.items())
            say(f"device {key}: {', '.join(words)}")
            figures = {name: {**counted[name], LATENCY: took[name]} for name in networks}
        for target in targets:
            if target.place.key == key:
                _tell_limits(target, figures, say)
    places = {target.place.key for target in targets}
    none = f"none of the targets' devices answers: {'; '.join(silent)}"
    return Trial(seconds, (none,) if len(silent) == len(places) else ())


def _tell_limits(target: Target, figures: Mapping[str, Mapping[str, float]], say: Say) -> None:
    """Say what a target allows of the reference's figures, and what is out of reach."""
    reference, *others = figures.items()
    known = [limit for limit in target.bounds if limit.metric in reference[1]]
    bounds = [
        f"{figure(limit.metric, limit.absolute(reference[1]))} of "
        f"{figure(limit.metric, reference[1][limit.metric])}"
        for limit in known
    ]
    if bounds:
        say(f"target {target.name}: allowed are {', '.join(bounds)}")
    for name, lowest in others:
        for limit in known:
            bound = limit.absolute(reference[1])
            if lowest[limit.metric] > bound:
                say(
                    f"target {target.name}: {figure(limit.metric, bound)} is out of reach: the "
                    f"{name} has {figure(limit.metric, lowest[limit.metric])}; relax the limit"
                )
