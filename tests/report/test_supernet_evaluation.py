"""Table and picture of an evaluated supernet."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from tailorbird.report.supernet_evaluation import EvaluatedSubnet, SupernetEvaluation, show
from tailorbird.report.supernet_plot import picture, png


def subnet(macs, accuracy, latency=None):
    return EvaluatedSubnet(
        architecture={"d": [2], "r": 32},
        genome=(0, int(macs)),
        resolution=32,
        macs=macs,
        params=macs / 8,
        accuracy=accuracy,
        latency_ms=latency,
    )


@pytest.fixture
def found():
    small, middle, large = subnet(1e6, 0.5, 0.25), subnet(5e6, 0.8, 0.5), subnet(7e6, 0.75, 1.0)
    return SupernetEvaluation(
        run="run",
        space="tiny $x",
        seed=0,
        images=20,
        mean_pareto_accuracy=0.65,
        ranges=(1e6, 3e6, 5e6, 7e6),
        smallest=small,
        largest=large,
        front=(small, None, middle),
        subnets=(small, large, middle),
        device="a device",
    )


def test_the_table_has_the_best_of_each_range(found):
    stream = io.StringIO()
    show(found, Console(file=stream, width=80))
    rows = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "smallest 1.00M 125k 32 50.00 0.2500" in rows
    assert "5.00M to 7.00M 5.00M 625k 32 80.00 0.5000" in rows
    assert "largest 7.00M 875k 32 75.00 1.000" in rows
    assert not any(row.startswith("3.00M") for row in rows)
    assert any("mean Pareto accuracy 65.00 % over 3 equal ranges" in row for row in rows)
    assert "latency: a device" in rows


def test_the_record_is_plain(found):
    again = json.loads(json.dumps(found.plain()))
    assert again["front"][1] is None
    assert again["largest"]["latency_ms"] == 1.0


def test_the_picture_is_drawn_also_of_a_single_subnet(found, tmp_path):
    from matplotlib.image import imread

    pixels = imread(picture(found, tmp_path / "front.png"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10
    one = subnet(1e6, 0.5)
    flat = SupernetEvaluation(
        run="run",
        space="tiny",
        seed=0,
        images=1,
        mean_pareto_accuracy=0.5,
        ranges=(1e6, 1e6, 1e6),
        smallest=one,
        largest=one,
        front=(one, None),
        subnets=(one,),
    )
    assert png(flat).startswith(b"\x89PNG")
