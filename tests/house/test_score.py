from dataclasses import dataclass, field, replace

import pytest
import torch

from tailorbird.graph.surgery import induce
from tailorbird.house import score as module
from tailorbird.house.score import Reference, measure_structures, score_accuracy
from tailorbird.house.store import HouseStore
from tailorbird.train.evaluate import accuracy, agreement
from tests.fakes import FakeDevice

from .makers import images, small_sample, teacher


def score(folder, *, labelled=True):
    sample = small_sample()
    return score_accuracy(
        teacher(),
        sample,
        sample.modules,
        images(labelled=labelled).validation,
        store=HouseStore(folder),
        batch_size=24,
        precision="float32",
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


def test_scores_resume(tmp_path, monkeypatch):
    whole = score(tmp_path / "whole")
    groups = []
    run = module._score_group

    def dying(*arguments, **options):
        if len(groups) == 2:
            raise KeyboardInterrupt
        groups.append([a.name for a in arguments[4]])
        return run(*arguments, **options)

    monkeypatch.setattr(module, "GROUP", 3)
    monkeypatch.setattr(module, "_score_group", dying)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "cut")
    assert len(HouseStore(tmp_path / "cut").load_scores()) == 6
    groups.clear()
    counting = lambda *a, **options: groups.append(a[4]) or run(*a, **options)  # noqa: E731
    monkeypatch.setattr(module, "_score_group", counting)
    assert score(tmp_path / "cut") == whole
    assert sum(map(len, groups)) == len(whole) - 6


def test_stopped_alternatives_are_not_scored(tmp_path):
    sample = small_sample()
    kept = dict(list(sample.modules.items())[1:])
    store = HouseStore(tmp_path)
    scores = score_accuracy(teacher(), sample, kept, images().validation, store=store)
    assert scores.keys() == kept.keys()


@dataclass
class Drifting:
    """A machine that runs half as fast again in each further session."""

    key: str = "drifting"
    exact: FakeDevice = field(default_factory=FakeDevice)
    speeds: list[float] = field(default_factory=list)

    def measure(self, models):
        self.speeds.append(1.5 ** len(self.speeds))
        return [
            replace(one, median_ms=one.median_ms * self.speeds[-1])
            for one in self.exact.measure(models)
        ]


def test_blocks_timed_in_several_sessions_are_scaled_to_the_teacher_in_each(tmp_path, monkeypatch):
    sample = small_sample()
    structures = {
        a.structure: (sample.modules[a.name], sample.blocks[a.block].in_shape)
        for a in sample.alternatives
    }
    monkeypatch.setattr(module, "MEASURE_CHUNK", -(-len(structures) // 3))
    network = (teacher().module, teacher().input_shape)
    whole = measure_structures(
        {"teacher": network, **structures}, FakeDevice(), store=HouseStore(tmp_path / "steady")
    )
    device, store = Drifting(), HouseStore(tmp_path / "drifting")
    reference = Reference(teacher(), whole["teacher"].median_ms)
    some = dict(list(structures.items())[:1])
    measure_structures(some, device, store=store, reference=reference)
    timed = measure_structures(structures, device, store=store, reference=reference)
    assert len(device.speeds) == 4
    for key, latency in timed.items():
        assert latency.median_ms == pytest.approx(whole[key].median_ms, rel=1e-9), key
