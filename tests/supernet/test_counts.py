"""MACs and parameters of genomes against published figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tailorbird.supernet.architecture import SPACES, load_space
from tailorbird.supernet.counts import macs, params

DATA = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data")) / "ofa"
GOLDENS = {
    "ofa-mbv3-w1.0": "ofa_mbv3_w1.0",
    "ofa-mbv3-w1.2": "ofa_mbv3_w1.2",
    "ofa-proxyless-w1.3": "ofa_proxyless_w1.3",
    "ofa-resnet50d": "ofa_resnet50d",
}


def records(path):
    if not (DATA / path).exists():
        pytest.skip(f"real data missing: no file ofa/{path} in TAILORBIRD_DATA ({DATA.parent})")
    return [json.loads(line) for line in (DATA / path).read_text().splitlines()]


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDENS)
def test_equal_to_the_original_code(name):
    rows = records(f"goldens/{GOLDENS[name]}.jsonl")
    space = load_space(name)
    genomes = space.genomes([{**row["config"], "r": row["resolution"]} for row in rows])
    assert params(space).sum(genomes).tolist() == [row["params"] for row in rows]
    expected = [row["macs"] for row in rows]  # summed in float32 there
    np.testing.assert_allclose(macs(space).sum(genomes), expected, rtol=1e-5)


@pytest.mark.data
def test_equal_to_the_evaluated_subnets():
    rows = records("mbv3_w1.0_evaluated_subnets.jsonl")
    space = load_space("ofa-mbv3-w1.0")
    genomes = space.genomes(rows)
    assert len(rows) == 1265
    assert params(space).sum(genomes).tolist() == [row["params"] for row in rows]
    assert macs(space).sum(genomes).tolist() == [row["macs"] for row in rows]


@pytest.mark.data
def test_equal_to_the_flops_that_go_with_the_resnet_predictor():
    rows = records("goldens/resnet50d_predictor.jsonl")
    space = load_space("ofa-resnet50d")
    figures = macs(space).sum(space.genomes(rows)) / 1e6
    np.testing.assert_allclose(figures, [row["mflops"] for row in rows], rtol=1e-9)


@pytest.mark.data
@pytest.mark.parametrize("name", GOLDENS)
def test_the_largest_subnet_has_the_supernets_own_tensors(name):
    """Parameters, minus what a subnet drops: running statistics and kernel transforms."""
    path = DATA / f"goldens/{GOLDENS[name]}.state_dict_shapes.json"
    if not path.exists():
        pytest.skip(f"real data missing: {path.name} in TAILORBIRD_DATA ({DATA.parent})")
    shapes = json.loads(path.read_text())
    dropped = ("running_mean", "running_var", "num_batches_tracked", "_matrix")
    total = sum(int(np.prod(s)) for key, s in shapes.items() if not key.endswith(dropped))
    space = load_space(name)
    largest = (space.space.sizes - 1)[None]
    assert params(space).sum(largest).tolist() == [total]


@pytest.mark.parametrize("name", SPACES)
def test_sums_are_those_of_the_layers(name):
    space = load_space(name)
    genomes = space.space.sample(60, np.random.default_rng(0))
    for table, figure in ((macs(space), "macs"), (params(space), "params")):
        expected = [
            sum(getattr(space.kind_of(s), figure)(s) for _, s in space.layers(g)) for g in genomes
        ]
        assert table.sum(genomes).tolist() == expected


def test_coupled_spaces_count_what_the_full_space_counts():
    coupled, full = load_space("compofa-mbv3-w1.2"), load_space("ofa-mbv3-w1.2")
    genomes = coupled.space.enumerate()
    same = full.genomes(coupled.architectures(genomes))
    assert len(genomes) == 25 * 243
    assert np.array_equal(macs(coupled).sum(genomes), macs(full).sum(same))
    assert np.array_equal(params(coupled).sum(genomes), params(full).sum(same))
