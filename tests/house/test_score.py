from contextlib import nullcontext

import pytest
import torch

from tailorbird.graph.surgery import capture, induce
from tailorbird.house.score import score_accuracy
from tailorbird.house.store import HouseStore
from tailorbird.progress import Silent
from tailorbird.train.evaluate import accuracy, agreement
from tailorbird.train.losses import relative_error

from .makers import images, small_sample, teacher


def score(folder, *, labelled=True, **options):
    sample = small_sample()
    return score_accuracy(
        teacher(),
        sample,
        sample.modules,
        images(labelled=labelled).validation,
        store=HouseStore(folder),
        batch_size=24,
        precision="float32",
        **options,
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_cached_score_is_that_of_the_whole_induced_network(tmp_path, labelled):
    scores = score(tmp_path, labelled=labelled)
    sample = small_sample()
    assert scores.keys() == sample.modules.keys()
    split = images(labelled=labelled).validation
    network = teacher().module
    reference = accuracy(network, split) if labelled else 1.0
    for alternative in sample.alternatives:
        block = sample.blocks[alternative.block]
        whole = induce(teacher(), {block: sample.modules[alternative.name]})
        found = accuracy(whole, split) if labelled else agreement(whole, network, split)
        figures = scores[alternative.name]
        assert figures["accuracy_loss"] == pytest.approx(reference - found, abs=1e-9), alternative
        with torch.no_grad():
            x = torch.cat([batch for batch, _ in split.batches(64)])
            p, q = network(x).log_softmax(1), whole(x).log_softmax(1)
        divergence = float((p.exp() * (p - q)).sum(1).mean())
        assert figures["divergence"] == pytest.approx(divergence, abs=1e-4)
        with torch.no_grad():
            inner = capture(teacher(), [block.input, block.output])(x)
            module = sample.modules[alternative.name]
            errors = [
                len(given) * relative_error(module(given), wanted)
                for given, wanted in zip(
                    inner[block.input].split(24), inner[block.output].split(24), strict=True
                )
            ]
        assert figures["distillation"] == pytest.approx(float(sum(errors)) / len(x), rel=1e-4)


class Stopping(Silent):
    """Counts how far the scoring is; ends it after ``after`` alternatives."""

    def __init__(self, after=None):
        self.after, self.done = after, 0

    def task(self, name, total):
        return nullcontext(self)

    def advance(self, steps=1, note=""):
        self.done += steps
        if self.done == self.after:
            raise KeyboardInterrupt


def test_scores_resume(tmp_path):
    whole = score(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "cut", group=3, progress=Stopping(after=6))
    assert len(HouseStore(tmp_path / "cut").load_scores()) == 6
    rest = Stopping()
    assert score(tmp_path / "cut", group=3, progress=rest) == whole
    assert rest.done == len(whole) - 6


def test_stopped_alternatives_are_not_scored(tmp_path):
    sample = small_sample()
    kept = dict(list(sample.modules.items())[1:])
    store = HouseStore(tmp_path)
    scores = score_accuracy(teacher(), sample, kept, images().validation, store=store)
    assert scores.keys() == kept.keys()
