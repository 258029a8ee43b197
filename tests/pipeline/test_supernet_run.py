"""Evaluating subnets of a supernet in its run folder."""

import numpy as np
import pytest
import torch

from tailorbird.files import write_json
from tailorbird.pipeline.supernet_run import SupernetRun, evaluate_subnets
from tailorbird.supernet.calibrate import accuracies, recalibrate
from tailorbird.supernet.store import save_supernet
from tests.supernet.tiny import stripes, tiny_supernet


def run_in(tmp_path, kind="mbconv", **options):
    net = tiny_supernet(tmp_path, kind, resolutions=(8, 12)).eval()
    save_supernet(net, tmp_path / "run" / "supernet")
    write_json(tmp_path / "run" / "identity.json", {"name": "tiny"})
    return SupernetRun(
        path=tmp_path / "run", supernet=net, data=stripes(**options), seed=0, weights="0" * 16
    )


@pytest.mark.parametrize("kind", ["mbconv", "transformer_block"])
def test_images_and_weights_are_channels_last_and_accuracies_the_same(tmp_path, kind):
    run = run_in(tmp_path, kind, images=96)
    genomes = run.architectures.space.enumerate()[::5]
    seen = []

    def watch(module, inputs):
        tensors = [value for value in module.state_dict().values() if value.ndim == 4]
        seen.extend(
            value.is_contiguous(memory_format=torch.channels_last) for value in (*inputs, *tensors)
        )

    handle = run.supernet.slots()[0][1].register_forward_pre_hook(watch)  # copied with the network
    found = evaluate_subnets(run, genomes)
    handle.remove()
    assert len(seen) >= 4 and all(seen)
    statistics = recalibrate(run.supernet, genomes, run.calibration())
    [judged] = run.data.validation.batches(len(run.data.validation))
    expected = accuracies(run.supernet, genomes, statistics, [judged])
    assert len(np.unique(expected)) > 1
    assert np.abs(found - expected).max() <= 1.01 / len(run.data.validation)  # one image's rounding
