"""The whole way with real files on a real runtime."""

from dataclasses import replace

import onnxruntime
import pytest
import torch

from tailorbird.export.bundle import load_student
from tailorbird.export.options import ExportOptions
from tailorbird.measure.devices.onnxruntime import OnnxRuntime
from tailorbird.pipeline import execute
from tests.house.makers import images

from .makers import job, small


@pytest.mark.slow
def test_a_job_on_onnx_runtime_delivers_files_that_run(tmp_path):
    # The limit on latency is a loose one: a busy machine must not decide this test.
    run, limits = tmp_path / "run", {"cpu": {"params": "0.97x", "latency": "20x"}}
    device = OnnxRuntime(threads=1, warmup=2, runs=5)
    export = ExportOptions(dynamic_batch=True)
    asked = job(run, limits=limits, device=device, export=export, sessions=2)
    report = execute(replace(asked, options=small(asked.options)))
    (target,) = report.targets
    assert target.met, target.reason
    assert target.replaced
    assert 0 < target.measured["latency_ms"] <= target.limits["latency_ms"]
    assert target.measured["params"] <= target.limits["params"]
    assert report.teacher[device.key].latency_ms > 0
    assert (run / "report.html").stat().st_size > 1000
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")

    session = onnxruntime.InferenceSession(str(run / target.onnx))
    student = load_student(run / "students" / "cpu")
    for batch in next(iter(images().test.batches(8)))[0].split((5, 3)):
        (logits,) = session.run(None, {"image": batch.numpy()})
        with torch.no_grad():
            expected = student.module(batch)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-3, rtol=1e-3)
