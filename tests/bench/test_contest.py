"""The contest's table and bars, on made-up answers."""

from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
LIMITS = [("ONNX Runtime", 0.75), ("ONNX Runtime", 0.4)]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import compress_cifar10

    return compress_cifar10


def judged(bench, *files):
    """A pool of files: (method, network, precision, share, right answers of ten)."""
    right, shares = {}, {}
    for method, network, precision, share, count in files:
        path = Path(method) / network / precision
        entry = bench.Entry(method, network, "ONNX Runtime", precision, path)
        right[entry] = np.arange(10) < count
        shares[entry] = share
    return bench.Judged(right, shares)


def test_rivals_are_their_best_file_and_ours_that_of_the_target(bench):
    one = judged(
        bench,
        ("tailorbird", "ort-0.75", "int8", 0.7, 9),
        ("tailorbird", "ort-0.4", "int8", 0.41, 8),
        ("labels withheld", "ort-0.75", "int8", 0.3, 7),
        ("labels withheld", "ort-0.4", "int8", 0.3, 8),
        ("donor as it is", "small", "float32", 0.3, 6),
        ("donor as it is", "large", "float32", 0.6, 8),
    )
    rows = {(r.target, r.method): r for r in bench.rows([one], LIMITS, "tailorbird")}
    assert rows["ort-0.75", "donor as it is"].network == "large"
    assert rows["ort-0.4", "donor as it is"].network == "small"
    assert rows["ort-0.75", "labels withheld"].top1 == 70
    over = rows["ort-0.4", "tailorbird"]
    assert (over.top1, over.met) == (80, False)
    beside = rows["ort-0.75", "donor as it is"]
    assert beside.ahead == pytest.approx(10)
    assert beside.error == pytest.approx(100 * np.std([0] * 9 + [1]) / 10**0.5)


def test_seeds_that_answer_the_same_images_make_no_error_smaller(bench):
    files = [("tailorbird", "ort-0.75", "int8", 0.7, 9), ("rival", "a", "float32", 0.7, 6)]
    seeds = [judged(bench, *files) for _ in range(4)]
    one, four = (
        next(r for r in bench.rows(some, LIMITS[:1], "tailorbird") if r.method == "rival")
        for some in (seeds[:1], seeds)
    )
    assert (four.ahead, four.error) == pytest.approx((one.ahead, one.error))


def test_a_target_without_a_file_is_a_missed_bar(bench):
    one = judged(
        bench,
        ("tailorbird", "ort-0.75", "int8", 0.7, 9),
        ("labels withheld", "ort-0.75", "int8", 0.7, 9),
        ("labels withheld", "ort-0.4", "int8", 0.3, 8),
        ("rival", "a", "float32", 0.3, 9),
        ("tailorbird, float32", "ort-0.75-float32", "float32", 0.7, 10),
    )
    table = bench.rows([one], LIMITS, "tailorbird")
    plain = bench.rows([one], LIMITS, "tailorbird, float32")
    results = {"ort-0.75": {"met": True}, "ort-0.4": {"met": False}}
    run = bench.Run(one, results, {}, None, {})
    bars = {bar["what"]: bar for bar in bench.verdicts(LIMITS, table, plain, [run])}
    assert bars["ort-0.75: points above the best rival (rival, a)"]["met"]
    assert bars["ort-0.75-float32: points above the best in float32 (rival, a)"]["is"] == 10
    assert bars["targets met, as measured when shipped"]["is"] == 1
    assert bars["ort-0.75: points from withheld labels"]["met"]
    for what in (
        "ort-0.4: points above the best rival (rival, a)",
        "ort-0.4-float32: points above the best in float32 (rival, a)",
        "ort-0.4: points from withheld labels",
    ):
        assert bars[what]["is"] is None and not bars[what]["met"], what
    assert not bars["limits kept, measured once more beside all"]["met"]
