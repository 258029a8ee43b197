import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import SpaceError
from tailorbird.space import Choice, Space


@st.composite
def spaces(draw, conflicts=True):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    matrix = None
    if conflicts and draw(st.booleans()):
        n = len(sizes)
        bits = np.array(draw(st.lists(st.booleans(), min_size=n * n, max_size=n * n)))
        upper = np.triu(bits.reshape(n, n), 1)
        matrix = upper | upper.T
    choices = tuple(Choice(f"g{i}", tuple("abcd"[:size])) for i, size in enumerate(sizes))
    return Space(choices, matrix)


@given(spaces(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_every_operator_stays_inside_and_pure(space, seed, rate):
    rng = np.random.default_rng(seed)
    left, right = space.sample(8, rng), space.sample(8, rng)
    kept = left.copy(), right.copy()
    for genomes in (left, right, space.mutate(left, rng, rate=rate)):
        space.validate(genomes)
    space.validate(space.crossover(left, right, rng))
    assert (left == kept[0]).all()
    assert (right == kept[1]).all()
    assert (space.sample(8, np.random.default_rng(seed)) == left).all()


@given(spaces(), st.integers(0, 2**32 - 1))
def test_encode_undoes_decode(space, seed):
    genomes = space.sample(5, np.random.default_rng(seed))
    assert (space.encode(space.decode(genomes)) == genomes).all()
    assert space.size == np.prod(space.sizes)


@given(spaces(conflicts=False), st.integers(0, 2**32 - 1))
def test_without_conflicts_rate_zero_and_equal_parents_change_nothing(space, seed):
    rng = np.random.default_rng(seed)
    genomes = space.sample(6, rng)
    assert (space.mutate(genomes, rng, rate=0.0) == genomes).all()
    assert (space.crossover(genomes, genomes, rng) == genomes).all()


def test_conflicts_do_not_starve_any_gene():
    everything = ~np.eye(4, dtype=bool)
    space = Space(tuple(Choice(f"g{i}", (0, 1)) for i in range(4)), everything)
    drawn = np.concatenate([space.sample(4, np.random.default_rng(s)) for s in range(100)])
    assert (drawn.sum(axis=1) <= 1).all()
    assert (drawn.sum(axis=0) > 20).all()


def test_errors_say_where():
    space = Space((Choice("a", (0, 1)), Choice("b", ("x", "y", "z"))), ~np.eye(2, dtype=bool))
    with pytest.raises(SpaceError, match=r"expected shape \(n, 2\), got \(1, 3\)"):
        space.validate(np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(SpaceError, match="2 genomes lie outside the space; first: row 1, b=3, "):
        space.validate(np.array([[0, 0], [0, 3], [-1, 0]]))
    with pytest.raises(
        SpaceError, match="1 genomes choose alternatives that overlap; first: row 1"
    ):
        space.decode(np.array([[0, 1], [1, 2]]))
    with pytest.raises(SpaceError) as caught:
        space.encode([{"a": 0, "b": "w"}, {"c": 1, "b": "x"}])
    assert str(caught.value) == (
        "row 0: b='w' is not one of ('x', 'y', 'z'); row 1: unknown 'c'; row 1: 'a' is missing"
    )


def test_ill_formed_spaces():
    with pytest.raises(SpaceError, match="choice 'k': expected distinct values"):
        Choice("k", (3, 3))
    with pytest.raises(SpaceError, match="choice 'k': expected distinct values"):
        Choice("k", ())
    with pytest.raises(SpaceError, match="names must differ"):
        Space((Choice("k", (1,)), Choice("k", (2,))))
    with pytest.raises(SpaceError, match=r"conflicts: expected shape \(1, 1\), got \(2, 2\)"):
        Space((Choice("k", (1,)),), np.zeros((2, 2), dtype=bool))
