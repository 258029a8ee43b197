import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import SpaceError
from tailorbird.space import Choice, Condition, Space


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


@st.composite
def nested(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    conditions = {}
    for gene in range(1, len(sizes)):
        if draw(st.booleans()):
            parent = draw(st.integers(0, gene - 1))
            conditions[gene] = Condition(parent, draw(st.integers(1, max(1, sizes[parent] - 1))))
    choices = tuple(Choice(f"g{i}", tuple(range(size))) for i, size in enumerate(sizes))
    return Space(choices, conditions=conditions)


def brute_force(space):
    """Canonical members found by walking over all combinations."""
    members = set()
    for row in np.ndindex(*space.sizes):
        alive = []
        for gene in range(len(row)):
            c = space.conditions.get(gene)
            alive.append(c is None or (alive[c.gene] and row[c.gene] >= c.least))
        if all(on or value == 0 for on, value in zip(alive, row, strict=True)):
            members.add(row)
    return members


@given(nested(), st.integers(0, 2**32 - 1))
def test_conditional_spaces_hold_each_member_once_and_operators_stay_canonical(space, seed):
    members = brute_force(space)
    listed = [tuple(row) for row in space.enumerate()]
    assert listed == sorted(members)
    assert space.size == len(members)
    rng = np.random.default_rng(seed)
    genomes = space.sample(8, rng)
    neighbours, rows = space.neighbours(genomes)
    for batch in (
        genomes,
        space.mutate(genomes, rng, rate=0.5),
        space.crossover(genomes, genomes[::-1], rng),
        neighbours,
    ):
        space.validate(batch)
        assert {tuple(row) for row in batch} <= members
    assert (neighbours != genomes[rows]).any(axis=1).all()
    everyone = np.array(sorted(members))
    for row, genome in enumerate(genomes):
        mine = {tuple(n) for n in neighbours[rows == row]}
        one_away = everyone[(everyone != genome).sum(axis=1) == 1]
        assert {tuple(n) for n in one_away} <= mine


def test_a_waking_gene_is_drawn_anew_and_inactive_ones_must_be_zero():
    space = Space(
        (Choice("depth", (1, 2)), Choice("kernel", (3, 5, 7))),
        conditions={1: Condition(0, 1)},
    )
    shallow = np.zeros((3000, 2), dtype=np.int64)
    woken = space.mutate(shallow, np.random.default_rng(0), rate=0.5)
    assert set(woken[woken[:, 0] == 1, 1]) == {0, 1, 2}
    deep = np.array([[1, 2]] * 50)
    mixed = space.crossover(deep, shallow[:50], np.random.default_rng(0))
    assert {tuple(row) for row in mixed} == {(0, 0), (1, 2)}
    with pytest.raises(SpaceError, match="1 genomes have inactive genes that differ from 0"):
        space.validate(np.array([[0, 2]]))
    with pytest.raises(SpaceError, match="has to depend on an earlier gene"):
        Space(space.choices, conditions={0: Condition(1, 1)})
    with pytest.raises(SpaceError, match=r"neither gene 1 nor gene 0, .* may have conflicts"):
        Space(space.choices, ~np.eye(2, dtype=bool), {1: Condition(0, 1)})
    with pytest.raises(SpaceError, match="at most 10,000,000 members"):
        Space(tuple(Choice(f"g{i}", (0, 1)) for i in range(30))).enumerate()


def test_neighbours_with_conflicts_push_rivals_out():
    space = Space(tuple(Choice(f"g{i}", (0, 1, 2)) for i in range(3)), ~np.eye(3, dtype=bool))
    neighbours, rows = space.neighbours(np.array([[1, 0, 0]]))
    assert sorted(map(tuple, neighbours)) == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 2),
        (0, 1, 0),
        (0, 2, 0),
        (2, 0, 0),
    ]
    assert (rows == 0).all()
