import numpy as np
import pytest

from tailorbird.errors import SpaceError
from tailorbird.estimate.features import SpaceFeatures, architecture_features, one_hot
from tailorbird.space import Choice, Condition, Space
from tailorbird.supernet.architecture import SPACES, load_space
from tailorbird.supernet.counts import macs

NESTED = Space(
    (Choice("depth", (1, 2, 3)), Choice("b2", ("x", "y")), Choice("b3", ("x", "y", "z"))),
    conditions={1: Condition(0, 1), 2: Condition(0, 2)},
)


def test_one_hot_equals_the_loop_and_tells_all_members_apart():
    genomes = NESTED.enumerate()
    found = one_hot(NESTED, genomes)
    for row, genome in enumerate(genomes):
        expected = []
        for gene, choice in enumerate(NESTED.choices):
            active = gene == 0 or genome[0] >= gene
            expected += [float(active and genome[gene] == v) for v in range(len(choice.values))]
        assert found[row].tolist() == expected
    assert len(np.unique(found, axis=0)) == len(genomes) == NESTED.size


def test_genomes_outside_the_space_and_figures_not_finite():
    with pytest.raises(SpaceError, match=r"1 genomes lie outside the space; first: row 0, depth=3"):
        one_hot(NESTED, np.array([[3, 0, 0]]))
    features = SpaceFeatures(
        NESTED,
        {"good": lambda g: g[:, 0] + 1.0, "bad": lambda g: np.where(g[:, 0] == 0, np.nan, 1.0)},
    )
    with pytest.raises(SpaceError, match=r"figures bad: expected finite numbers, 1 of 9 genomes"):
        features(NESTED.enumerate())


@pytest.mark.parametrize("name", SPACES)
def test_stage_sums_of_every_space_equal_a_walk_over_its_layers(name):
    space = load_space(name)
    features = architecture_features(space)
    genomes = space.space.sample(5, np.random.default_rng(0))
    groups = features(genomes)
    for group, names in features.columns.items():
        assert groups[group].shape == (5, len(names))
    figures = dict(zip(features.columns["figures"], groups["figures"].T, strict=True))
    stages = {label for label in figures if label.startswith("blocks of stage")}
    assert 4 <= len(stages) <= 8 or (len(stages) == 1 and "vit" in name)
    assert ("heads" in figures) == ("vit" in name)
    assert figures["log macs"] == pytest.approx(np.log(macs(space).sum(genomes)))
    for row, genome in enumerate(genomes):
        named = space.layers(genome)
        layers = [shape for _, shape in named]
        blocks = [shape for label, shape in named if label.startswith("blocks.")]
        assert np.exp(figures["log resolution"][row]) == pytest.approx(layers[0].in_size)
        assert figures["blocks"][row] == len(blocks)
        assert figures["kernel"][row] == sum(shape.kernel for shape in blocks)
        assert figures["kernel x expand"][row] == pytest.approx(
            sum(shape.kernel * shape.expand for shape in blocks)
        )
        assert sum(figures[label][row] for label in stages) == len(blocks)


def test_stages_are_those_of_the_depth_genes():
    space = load_space("ofa-mbv3-w1.0")
    genomes = space.space.sample(20, np.random.default_rng(3))
    features = architecture_features(space)
    table = dict(zip(features.columns["figures"], features(genomes)["figures"].T, strict=True))
    depths = np.array([a["d"] for a in space.architectures(genomes)])
    assert (table["blocks of stage 0"] == 1).all()  # the fixed first block
    for stage in range(5):
        assert (table[f"blocks of stage {stage + 1}"] == depths[:, stage]).all()
