"""A student's two files rebuild it elsewhere, ready to be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from tailorbird.data.images import Normalisation
from tailorbird.errors import GraphError, StoreError
from tailorbird.export.bundle import load_student, save_student
from tailorbird.graph.serial import save_module

NORMALISATION = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def small() -> fx.GraphModule:
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1)]
    return fx.symbolic_trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 4 * 4, 2)))


def save(folder: Path, **changes: object) -> fx.GraphModule:
    module = small().eval()
    arguments: dict[str, object] = {
        "classes": ("cat", "dög"),
        "normalisation": NORMALISATION,
        "input_shape": (3, 6, 6),
        "metrics": {"latency_ms": 0.25, "accuracy": 1},
    }
    save_student(module, folder, **(arguments | changes))
    return module


def test_everything_comes_back(tmp_path):
    module = save(tmp_path / "deep" / "edge")
    student = load_student(tmp_path / "deep" / "edge")
    images = torch.rand(3, 3, 6, 6)
    assert torch.equal(student.module(images), module(images))
    assert student.classes == ("cat", "dög")
    assert student.normalisation == NORMALISATION
    assert student.input_shape == (3, 6, 6)
    assert student.metrics == {"latency_ms": 0.25, "accuracy": 1.0}
    assert not student.module.training
    names = {path.name for path in (tmp_path / "deep" / "edge").iterdir()}
    assert names == {"student.json", "student.safetensors"}
    save(tmp_path, classes=None)
    assert load_student(tmp_path).classes is None


def test_it_is_trained_on(tmp_path):
    save(tmp_path)
    student = load_student(tmp_path)
    net = student.module.train()
    images = torch.rand(16, *student.input_shape, generator=torch.Generator().manual_seed(0))
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    step, losses = torch.optim.SGD(net.parameters(), 0.05), []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(net(student.normalisation(images)), labels)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    assert net.get_submodule("1").num_batches_tracked == 40


def test_faults_are_named_all_at_once(tmp_path):
    with pytest.raises(StoreError, match=r"metrics \['latency_ms'\] are not finite"):
        save(tmp_path, metrics={"latency_ms": float("nan"), "accuracy": 0.5})
    with pytest.raises(StoreError, match=r"input_shape: expected channels.*got \[3, 6\]"):
        save(tmp_path, input_shape=(3, 6))
    assert list(tmp_path.iterdir()) == []
    odd = {"kind": "student", "classes": [1], "normalisation": {"mean": [0], "std": [0]}}
    save_module(small(), tmp_path, "student", odd)
    with pytest.raises(StoreError) as caught:
        load_student(tmp_path)
    for word in ("student.json", "classes:", "input_shape:", "metrics:", "every std"):
        assert word in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match=r"student\.json: missing"):
        load_student(tmp_path)
    save(tmp_path)
    record = json.loads((tmp_path / "student.json").read_text())
    record["extra"]["classes"] = ["dog", "cat"]
    (tmp_path / "student.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"student\.json: changed since"):
        load_student(tmp_path)


def test_an_untraced_network_is_refused(tmp_path):
    with pytest.raises(GraphError, match=r"expected a traced network.*got Linear"):
        save_student(
            nn.Linear(2, 2),
            tmp_path,
            classes=None,
            normalisation=NORMALISATION,
            input_shape=(3, 6, 6),
            metrics={},
        )
