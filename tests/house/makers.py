"""Tiny networks, images and houses, the same ones every time."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch

from tailorbird.data.sources import digits
from tailorbird.demo import digits_net, narrow_net
from tailorbird.graph.trace import trace
from tailorbird.house.build import sample_house
from tailorbird.house.options import HouseOptions
from tailorbird.progress import Silent

OPTIONS = HouseOptions(
    teacher_blocks=6, donor_blocks=3, pruned=4, epochs=2.0, batch_size=64, precision="float32"
)


@cache
def images(*, labelled=True, train=160, validation=64, test=64):
    whole = digits(image_size=8)

    def part(split, count):
        split = split.take(torch.arange(count))
        return split if labelled else replace(split, labels=None)

    return replace(
        whole,
        train=part(whole.train, train),
        validation=part(whole.validation, validation),
        test=part(whole.test, test),
        labelled=labelled,
    )


def seeded(make, seed=0, **arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**arguments)


def net(seed=0, *, width=8, depth=1):
    """An untrained teacher whose batch norms have lived a little."""
    model = seeded(digits_net, seed, width=width, depth=depth).train()
    with torch.no_grad():
        for batch, _ in images().train.batches(64):
            model(batch)
    return model.eval()


def donor(seed=1):
    return seeded(narrow_net, seed, width=4, depth=1).eval()


@cache
def teacher():
    return trace(net(), (1, 8, 8))


@cache
def donors():
    return {"narrow": trace(donor(), (1, 8, 8))}


@cache
def small_sample():
    """A house before training; read only."""
    return sample_house(teacher(), donors(), images(), OPTIONS, seed=0)


class Killed(BaseException):
    """Stands for the process's end."""


class Watched(Silent):
    """Progress that counts the steps of this sitting, and ends the process after some."""

    def __init__(self, dies_after=math.inf):
        self.dies_after, self.resumed, self.steps = dies_after, [], 0

    @contextmanager
    def task(self, name, total):
        self.begun = False
        yield self

    def advance(self, steps=1, note=""):
        if not self.begun:  # says what earlier sittings have done
            self.resumed.append(steps)
            self.begun = True
            return
        self.steps += note != "time is spent" and steps
        if self.steps >= self.dies_after:
            raise Killed


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(left, right):
    """Whether two networks hold the same tensors, bit for bit."""
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
