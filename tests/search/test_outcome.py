from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tailorbird.errors import ConfigError, StoreError
from tailorbird.search.outcome import document, save_csv, save_json
from tailorbird.search.strategy import SearchResult, Winner
from tailorbird.space import Choice, Space

SPACE = Space((Choice("k", (3, 5, 7)), Choice("r", (128, 224))))


def winner(limits, cost, genome=(1, 0), quality=0.75):
    return Winner(limits=limits, genome=np.array(genome), quality=quality, cost=cost)


def result(*winners, stopped=False):
    return SearchResult(
        strategy="top-down",
        seed=3,
        seconds=0.5,
        evaluations=10,
        winners=winners,
        stopped=stopped,
    )


def test_one_device_reads_as_promised(tmp_path):
    found = result(
        winner({"latency_ms": 20}, {"latency_ms": 19.5}),
        winner({"latency_ms": 15.0}, {"latency_ms": 14.5}, genome=(0, 1), quality=0.5),
    )
    save_json(tmp_path / "deep" / "out.json", found, SPACE.decode)
    assert json.loads((tmp_path / "deep" / "out.json").read_text()) == {
        "strategy": "top-down",
        "seed": 3,
        "seconds": 0.5,
        "evaluations": 10,
        "targets": [
            {
                "limit": 20.0,
                "latency_ms": 19.5,
                "predicted_accuracy": 0.75,
                "architecture": {"k": 5, "r": 128},
            },
            {
                "limit": 15.0,
                "latency_ms": 14.5,
                "predicted_accuracy": 0.5,
                "architecture": {"k": 3, "r": 224},
            },
        ],
    }


def test_several_devices_and_metrics_name_what_is_limited(tmp_path):
    cost = {"latency_ms@phone": 9.0, "latency_ms@board": 30.0, "macs": 2e8}
    found = result(
        winner({"latency_ms@phone": 10.0}, cost),
        winner({"latency_ms@board": 40.0, "macs": 3e8}, cost),
        winner({"macs": 3e8}, cost),
        winner({"latency_ms@phone": 10.0, "latency_ms@board": 40.0}, cost),
        stopped=True,
    )
    whole = document(found, SPACE.decode)
    assert whole["stopped"] is True
    for target in whole["targets"]:
        del target["architecture"], target["predicted_accuracy"]
    assert whole["targets"] == [
        {"device": "phone", "limit": 10.0, "latency_ms": 9.0, "macs": 2e8},
        {
            "device": "board",
            "limits": {"latency_ms": 40.0, "macs": 3e8},
            "latency_ms": 30.0,
            "macs": 2e8,
        },
        {"device": "", "limit": 3e8, "limits": {"macs": 3e8}, "macs": 2e8},
        {
            "device": "phone,board",
            "limits": {"latency_ms@phone": 10.0, "latency_ms@board": 40.0},
            "latency_ms@phone": 9.0,
            "latency_ms@board": 30.0,
            "macs": 2e8,
        },
    ]
    given = document(found, SPACE.decode, devices=["phone", "board", "board", "phone"])
    assert given["targets"][2]["device"] == "board"
    assert given["targets"][2]["latency_ms"] == 30.0
    save_csv(tmp_path / "out.csv", found, SPACE.decode)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["device"] for row in rows] == ["phone", "board", "", "phone,board"]
    assert [row["limit_macs"] for row in rows] == ["", "300000000.0", "300000000.0", ""]
    assert json.loads(rows[0]["architecture"]) == {"k": 5, "r": 128}


def test_architectures_of_any_make_become_json():
    found = result(winner({"macs": 2.0}, {"macs": 1.0}))
    made = document(found, lambda _: [{"ks": np.array([3, 5]), "r": np.int64(128), "d": (2, None)}])
    assert made["targets"][0]["architecture"] == {"ks": [3, 5], "r": 128, "d": [2, None]}
    assert json.dumps(made)


def test_faults(tmp_path):
    found = result(winner({"macs": 2.0}, {"macs": 1.0}))
    with pytest.raises(ConfigError, match="devices: expected 1 names, got 2"):
        document(found, SPACE.decode, devices=["a", "b"])
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't write"):
        save_csv(tmp_path / "file" / "out.csv", found, SPACE.decode)
