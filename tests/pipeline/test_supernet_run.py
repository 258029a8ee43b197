"""Evaluating subnets of a supernet in its run folder."""

import numpy as np
import pytest
import torch

from tailorbird.files import write_json
from tailorbird.pipeline import supernet_run
from tailorbird.pipeline.supernet_run import SupernetRun, evaluate_subnets
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.store import save_supernet
from tests.supernet.tiny import stripes, tiny_supernet


def run_in(tmp_path, kind="mbconv", **options):
    net = tiny_supernet(tmp_path, kind, resolutions=(8, 12)).eval()
    save_supernet(net, tmp_path / "run" / "supernet")
    write_json(tmp_path / "run" / "identity.json", {"name": "tiny"})
    return SupernetRun(path=tmp_path / "run", supernet=net, data=stripes(**options), seed=0)


@pytest.mark.parametrize("kind", ["mbconv", "transformer_block"])
def test_images_and_weights_are_channels_last_and_accuracies_the_same(tmp_path, monkeypatch, kind):
    run = run_in(tmp_path, kind, images=96)
    genomes = run.architectures.space.enumerate()[::5]
    seen = []

    def spied(supernet, *rest):
        *others, images = rest
        assert supernet is not run.supernet
        weights = supernet.slots()[0][1].state_dict().values()
        seen.extend(
            value.is_contiguous(memory_format=torch.channels_last)
            for value in weights
            if value.ndim == 4
        )

        def watched():
            for batch in images:
                pixels = batch[0] if isinstance(batch, tuple) else batch
                seen.append(pixels.is_contiguous(memory_format=torch.channels_last))
                yield batch

        own = accuracies if len(others) == 2 else recalibrate
        return own(supernet, *others, watched())

    monkeypatch.setattr(supernet_run, "recalibrate", spied)
    monkeypatch.setattr(supernet_run, "accuracies", spied)
    found = evaluate_subnets(run, genomes)
    assert len(seen) >= 3 and all(seen)
    statistics = recalibrate(run.supernet, genomes, run.calibration())
    [judged] = run.data.validation.batches(len(run.data.validation))
    expected = accuracies(run.supernet, genomes, statistics, [judged])
    assert len(np.unique(expected)) > 1
    assert np.abs(found - expected).max() <= 1.01 / len(run.data.validation)  # one image's rounding
