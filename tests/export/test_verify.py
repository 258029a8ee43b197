import pytest
import torch
from torch import nn

from tailorbird.errors import ExportError
from tailorbird.export.onnx import export_onnx
from tailorbird.export.verify import agreement, verify
from tailorbird.measure.answering import run_onnx


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 5)
    )


def images(count):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_exported_network_passes_in_train_mode_too(tmp_path, dynamic):
    module = net().train()
    path = export_onnx(module, (3, 4, 4), tmp_path / "m.onnx", dynamic_batch=dynamic)
    parity = verify(module, path, images(70))
    assert parity.passed
    assert parity.images == 70
    assert parity.top1_agreement == 1.0
    assert parity.max_difference < 1e-5
    assert module.training


def test_another_networks_weights_fail(tmp_path):
    module = net()
    path = export_onnx(module, (3, 4, 4), tmp_path / "m.onnx")
    with torch.no_grad():
        module[4].bias[2] += 0.5
    parity = verify(module, path, images(8))
    assert not parity.passed
    assert parity.max_difference == pytest.approx(0.5, abs=1e-4)
    assert verify(module, path, images(8), tolerance=0.6).passed


def test_outputs_that_are_not_finite_fail(tmp_path):
    module = net()
    with torch.no_grad():
        module[4].bias[2] = float("nan")
    path = export_onnx(module, (3, 4, 4), tmp_path / "m.onnx")
    assert not verify(module, path, images(4)).passed


def test_wrong_files_are_named(tmp_path):
    module = net()
    path = export_onnx(nn.Sequential(net(), nn.Linear(5, 2)), (3, 4, 4), tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"other.onnx: .*\(8, 2\), the network's \(8, 5\)"):
        verify(module, path, images(8))
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(ExportError, match=r"bad.onnx: ONNX Runtime can't run it"):
        verify(module, tmp_path / "bad.onnx", images(8))
    with pytest.raises(ExportError, match="no images"):
        verify(module, path, images(0))


def test_a_fixed_batch_need_not_divide_the_images(tmp_path):
    module = net()
    path = export_onnx(module, (3, 4, 4), tmp_path / "m.onnx", batch=8)
    assert verify(module, path, images(20)).passed
    assert verify(module, path, images(3)).images == 3


def test_agreement_tells_the_worst_image_and_what_is_not_finite(tmp_path):
    module, shown = net().eval(), images(8)
    path = export_onnx(module, (3, 4, 4), tmp_path / "m.onnx")

    def off(file, given):
        found = run_onnx(file, given)
        found[5, 1] += 3.0
        return found

    found = agreement(module, path, shown, precision="int8", run=off)
    assert (found.worst_image, found.images, found.passed) == (5, 8, True)
    assert found.worst_difference == pytest.approx(3.0, abs=1e-4)
    assert found.mean_difference == pytest.approx(3.0 / 40, abs=1e-4)

    def broken(file, given):
        found = run_onnx(file, given)
        found[2, 0] = float("nan")
        return found

    assert not agreement(module, path, shown, precision="int8", run=broken).passed
