from __future__ import annotations

import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.report.search_plot import plot, png
from tailorbird.search.strategy import SearchResult, Winner


def result(strategy, limits, metric="latency_ms", gain=0.0):
    return SearchResult(
        strategy=strategy,
        seed=0,
        seconds=1.0,
        evaluations=1,
        winners=tuple(
            Winner(
                limits={metric: float(limit)},
                genome=np.array([0]),
                quality=0.88 - 1.4 / limit + gain,
                cost={metric: 0.98 * limit},
            )
            for limit in limits
        ),
    )


def size(picture):
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


def test_one_panel_per_limited_metric(tmp_path):
    one = result("all-at-once", range(15, 65, 5))
    two = result("independent", range(15, 65, 5), gain=-0.002)
    width, height = size(plot([one, two], tmp_path / "front.png").read_bytes())
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert size(png([one, result("all-at-once", [200], metric="macs")])) == (width, 2 * height)


@pytest.mark.parametrize("count", [1, 2, 500])
def test_any_number_of_limits_can_be_drawn(count):
    assert len(png([result("random", np.linspace(15, 60, count))])) > 5000


def test_names_are_no_mathematics_and_no_control_characters():
    odd = result("a$^b$\x1b[0m", [10.0, 20.0], metric="latency_ms@ph$one_1")
    assert len(png([odd], quality="top-1 $accuracy")) > 5000


def test_nothing_to_draw_says_so():
    with pytest.raises(ConfigError, match="nothing to draw"):
        png([])
