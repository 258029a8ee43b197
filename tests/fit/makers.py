"""Candidates whose figures are known: one gene of width, one of kind, latency with a bias."""

from __future__ import annotations

import numpy as np
from torch import nn

from tailorbird.device import Latency
from tailorbird.errors import MeasurementError
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.fit.candidates import Judgement, Network, Words, latency_at
from tailorbird.fit.judge import Judges
from tailorbird.fit.quantised import Quantiser
from tailorbird.fit.ship import Shipping
from tailorbird.space import Choice, Space
from tailorbird.task import CLASSIFICATION

WIDTHS = tuple(range(1, 41))


class Sums:
    """Networks of ``width`` channels; true latency is ``width + 3 * kind``, a kind estimated at 1.

    Quality grows with both genes.
    """

    words = Words(
        reference="full network",
        candidate="candidate",
        way_out="relax the limit",
        training="train",
        doing="training",
        opening="open {place}",
    )
    closes = 0.0
    space = Space((Choice("width", WIDTHS), Choice("kind", (0, 1))))
    reference = (len(WIDTHS) - 1, 1)

    def __init__(self):
        self.judged, self.learned = [], {}

    def true_ms(self, genomes):
        return genomes[:, 0] + 1.0 + 3.0 * genomes[:, 1]

    def cost(self, genomes):
        width = genomes[:, 0] + 1
        found = {"macs": 100.0 * width, "size_mb": 4e-6 * width}
        return found | {
            metric: genomes[:, 0] + 1.0 + genomes[:, 1] + bias
            for metric, bias in self.learned.items()
        }

    def quality(self, genomes):
        return genomes[:, 0] + 2.5 * genomes[:, 1]

    def prepare(self):
        """Nothing."""

    def open(self, place, timing):
        self.learned[latency_at(place)] = 0.0
        return 43.0 if timing is None else timing.reference_ms

    def content(self, key):
        return key

    def label(self, key):
        return ",".join(map(str, key))

    def named(self, label):
        return tuple(map(int, label.split(",")))

    def checks(self, place, proposed):
        return ()

    def learn(self, place, measured_ms):
        keys = np.array(sorted(measured_ms))
        errors = [measured_ms[tuple(k)] - (k[0] + k[1] + 1.0) for k in keys.tolist()]
        self.learned[latency_at(place)] = float(np.mean(errors))

    def network(self, key):
        return Network(nn.Conv1d(1, key[0] + 1, 1, bias=False), (1, 100))

    def judge(self, keys):
        self.judged += keys
        return [Judgement(float(self.quality(np.array([k]))[0]), 0.5) for k in keys]

    def judged_as(self, key):
        return self.network(key)

    epochs, kinds = 0.0, {}

    def kind(self, key):
        return ""

    def training(self, key):
        return self.label(key)

    def observe(self, trained):
        """Nothing is learned of it."""

    def as_they_are(self):
        return {}

    def parts(self, key):
        return ()


class Times:
    """Times `Sums` as they are; fails after so many networks."""

    base_ms = 43.0

    def __init__(self, candidates, *, fails_after=None, speed=1.0):
        self.candidates, self.fails_after, self.speed = candidates, fails_after, speed
        self.reference_ms = self.base_ms / speed
        self.known = {}

    def measure(self, networks, *, title="", together=8):
        for label in networks:
            if self.fails_after is not None and len(self.known) >= self.fails_after:
                raise MeasurementError("the cable is out")
            genome = np.array([self.candidates.named(label)])
            ms = float(self.candidates.true_ms(genome)[0]) / self.speed
            self.known[label] = Latency(median_ms=ms, spread_ms=0.0, runs=1, warmup=0)
        return {label: self.known[label] for label in networks}


def shipping_to(folder, exporter, reference, data, *, options=None):
    """Writes files into a folder; ``reference`` is a Network for images without labels."""
    judges = Judges(data, lambda: reference, CLASSIFICATION)
    quantiser = Quantiser(data, judges, QuantiseOptions())
    return Shipping(data, folder, options or ExportOptions(), exporter, quantiser)
