from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.errors import SpaceError
from tailorbird.search.front import staircase, undominated

clouds = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12)


def beaten(point, others):
    """Whether one of ``others`` is no larger anywhere and smaller somewhere: the slow oracle."""
    return any(
        all(a <= b for a, b in zip(other, point, strict=True)) and other != point
        for other in others
    )


@given(st.integers(1, 4), st.data())
def test_undominated_equals_comparing_all_pairs(width, data):
    row = st.tuples(*[st.integers(0, 4)] * width)
    cloud = data.draw(st.lists(row, min_size=1, max_size=20))
    assert undominated(cloud).tolist() == [not beaten(point, cloud) for point in cloud]


def test_a_front_of_very_many_points():
    rng = np.random.default_rng(0)
    points = rng.random((300_000, 2))
    mask = undominated(points)
    front = points[mask][np.argsort(points[mask][:, 0])]
    assert (np.diff(front[:, 1]) < 0).all()
    heights = front[np.searchsorted(front[:, 0], points[~mask][:, 0], side="right") - 1, 1]
    assert (heights <= points[~mask][:, 1]).all()


@given(clouds)
def test_staircase_goes_right_and_down_through_every_front_point(cloud):
    line = staircase(cloud)
    assert (np.diff(line[:, 0]) >= 0).all()
    assert (np.diff(line[:, 1]) <= 0).all()
    points = np.array(cloud, dtype=float).reshape(-1, 2)
    assert {tuple(p) for p in points[undominated(points)]} <= {tuple(p) for p in line}


def test_faulty_points():
    with pytest.raises(SpaceError, match=r"expected shape \(n, 2\), got \(1, 3\)"):
        staircase([[1.0, 2.0, 3.0]])
    with pytest.raises(SpaceError, match="not finite"):
        undominated([[1.0, float("nan")]])
