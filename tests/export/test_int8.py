"""Files in int8, of networks that have learnt to read digits."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tailorbird.device import ONNX
from tailorbird.errors import ExportError
from tailorbird.export.exporters import Calibration, OnnxInt8Exporter, exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.measure.answering import run_onnx
from tests.export.networks import Convolutional, accuracy, taught, transformer

TAUGHT = 600
ABOUT = {"tailorbird.target": "phone"}


@pytest.fixture(scope="module")
def digits():
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(loaded.target)


@pytest.fixture(scope="module")
def learnt(digits):
    images, labels = (each[:TAUGHT] for each in digits)
    return {
        "convolutional": taught(Convolutional(), images, labels, epochs=5),
        "transformer": taught(transformer(), images, labels, epochs=8),
    }


@pytest.fixture(scope="module")
def calibration(digits):
    return Calibration(images=digits[0][:64])


@pytest.fixture(scope="module")
def files(learnt, calibration, tmp_path_factory):
    """name -> the file in int8, batch 1, and how it was made."""
    folder, made = tmp_path_factory.mktemp("int8"), {}
    for name, network in learnt.items():
        path = folder / f"{name}.onnx"
        made[name] = path, write(network, path, calibration)
    return made


def write(network, path, calibration, *, batch=1, **options):
    return OnnxInt8Exporter().final(
        network,
        (1, 8, 8),
        path,
        options=ExportOptions(**options),
        metadata=ABOUT,
        batch=batch,
        calibration=calibration,
    )


def run_as(path, tmp_path):
    """Operators that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)


NAMES = ["convolutional", "transformer"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_reads_as_well_as_its_network(name, learnt, files, digits):
    images, labels = (each[TAUGHT:] for each in digits)
    path, written = files[name]
    with torch.no_grad():
        right = accuracy(learnt[name](images), labels)
    assert right > 50
    assert accuracy(run_onnx(path, images.numpy()), labels) > right - 1.5
    assert written.calibration.startswith(("minmax", "percentile"))
    assert written.kept == ()
    assert written.loss is None


@pytest.mark.parametrize("name", NAMES)
def test_how_far_a_file_is_from_its_network_is_told(name, learnt, files, digits):
    images = digits[0][TAUGHT : TAUGHT + 100]
    path, _ = files[name]
    found = exporter_for(ONNX, "int8").verify(learnt[name], path, images)
    with torch.no_grad():
        off = np.abs(run_onnx(path, images.numpy()) - learnt[name](images).numpy())
    assert found.mean_difference == pytest.approx(off.mean(), rel=1e-3)
    assert found.worst_image == off.max(1).argmax()
    assert found.worst_difference == pytest.approx(off.max(), rel=1e-3)
    assert 0 < found.mean_difference < 0.3
    assert found.top1_agreement > 0.95
    assert (found.images, found.precision, found.passed) == (100, "int8", True)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_in_int8_and_sums_that_only_meet_float_are_not(name, files, tmp_path):
    found = run_as(files[name][0], tmp_path)
    if name == "convolutional":
        assert found["QLinearConv"] == 11  # of which one has a bias but no BatchNorm
        assert found["QLinearAdd"] == 2
        assert found["QLinearMul"] == 3
        assert found["QLinearConcat"] == 1
        assert "Conv" not in found
    else:
        assert found["QLinearConv"] == 1
        assert found["QGemm"] == 9
        assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 4
        assert "QLinearAdd" not in found
        assert "QLinearSoftmax" not in found
    assert found["QGemm"] >= 1


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_only_timed_have_the_same_operators(name, learnt, files, tmp_path):
    [path] = OnnxInt8Exporter().quick([(learnt[name], (1, 8, 8))], tmp_path, ["timed"])
    expected, found = run_as(files[name][0], tmp_path), run_as(path, tmp_path)
    views = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather")
    for one in (expected, found):
        for kind in views:
            del one[kind]
    assert found == expected


def test_weights_are_int8_per_channel_and_the_ends_float32(files):
    path, _ = files["convolutional"]
    model = onnx.load(path)
    assert not [n for n in model.graph.node if n.domain]
    assert {entry.domain for entry in model.opset_import} == {""}
    assert model.opset_import[0].version >= 13
    stored = {entry.name: entry for entry in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = made[node.input[1]]
            assert stored[weight.input[0]].data_type == onnx.TensorProto.INT8
            assert stored[weight.input[1]].dims[0] == stored[weight.input[0]].dims[0]
            activation = made[node.input[0]]
            assert stored[activation.input[2]].data_type == onnx.TensorProto.UINT8
    ends = [*model.graph.input, *model.graph.output]
    assert [value.name for value in ends] == ["image", "logits"]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    assert made["logits"].op_type == "Gemm"  # which gives float32: logits are not rounded


def test_metadata_stay_and_can_be_changed(files, tmp_path):
    path, _ = files["convolutional"]
    exporter = OnnxInt8Exporter()
    assert exporter.metadata_of(path) == ABOUT
    exporter.relabel(path, tmp_path / "other.onnx", {"tailorbird.target": "board"})
    assert exporter.metadata_of(tmp_path / "other.onnx") == {"tailorbird.target": "board"}


@pytest.mark.parametrize(
    ("batch", "options", "dim"),
    [(6, {}, 6), (1, {"dynamic_batch": True, "softmax": True}, "batch")],
)
def test_batches_are_fixed_or_open(batch, options, dim, learnt, calibration, digits, tmp_path):
    network = learnt["convolutional"]
    if "softmax" in options:
        network = nn.Sequential(network, nn.Softmax(1)).eval()
    path = tmp_path / "model.onnx"
    write(network, path, calibration, batch=batch, **options)
    model = onnx.load(path)
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_value or first.dim_param) == dim
    assert model.graph.output[0].name == ("probabilities" if "softmax" in options else "logits")
    found = OnnxInt8Exporter().verify(network, path, digits[0][:20])
    assert found.top1_agreement > 0.9
    [timed] = OnnxInt8Exporter().quick([(network, (1, 8, 8))], tmp_path, ["timed"], batch=3)
    assert run_onnx(timed, digits[0][:3].numpy()).shape == (3, 10)


# what costs too much accuracy --------------------------------------------------------------------


def told(losses, seen):
    """Tells these losses in turn, and notes what is in float32 in each file."""

    def loss(path):
        model = onnx.load(path)
        made = {name: node for node in model.graph.node for name in node.output}
        products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        stored = {
            entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer
        }
        quantised = [node for node in products if node.input[1] in made]
        widest = max(abs(stored[made[n.input[1]].input[0]].astype(int)).max() for n in quantised)
        seen.append((len(products) - len(quantised), int(widest)))
        return losses[min(len(seen), len(losses)) - 1]

    return loss


def test_nothing_more_is_tried_where_little_is_lost(learnt, calibration, tmp_path):
    seen = []
    given = replace(calibration, loss=told([0.5], seen), max_loss=1.0)
    written = write(learnt["convolutional"], tmp_path / "m.onnx", given)
    assert seen == [(0, 127)]
    assert (written.kept, written.loss) == ((), 0.5)


def test_weights_of_seven_bits_come_before_layers_in_float(learnt, calibration, tmp_path):
    seen = []
    given = replace(calibration, loss=told([9.0, 0.0], seen), max_loss=1.0)
    written = write(learnt["convolutional"], tmp_path / "m.onnx", given)
    assert [widest <= 64 for _, widest in seen] == [False, True]
    assert written.calibration.endswith("7-bit weights")
    assert (written.kept, written.loss) == ((), 0.0)


def test_the_best_is_kept_where_nothing_is_good_enough(learnt, calibration, tmp_path):
    seen = []
    given = replace(calibration, loss=told([5.0, 6.0, 4.0, 3.0, 3.5], seen), max_loss=1.0)
    written = write(learnt["convolutional"], tmp_path / "m.onnx", given)
    assert len(seen) == 6  # all, 7 bits, and 1, 2, 4 and 5 of 20 layers in float32
    assert written.loss == 3.0
    assert len(written.kept) == 2
    assert onnx.load(tmp_path / "m.onnx") is not None


class Fragile(nn.Module):
    """Convolutions; what is between two of them is of sizes too far apart for 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(1, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(5)))
        self.head = nn.Linear(8, 10)
        with torch.no_grad():
            for layer in (self.before, self.first, self.second, *self.after):
                nn.init.orthogonal_(layer.weight)
                layer.bias.zero_()
            self.first.weight[0] *= 3000
            self.second.weight[:, 0] /= 3000

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(self.before(x)))))
        return self.head(self.after(x).mean((2, 3)))


def test_the_layers_that_cost_most_stay_in_float(digits, calibration, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Fragile().eval()
    path, images = tmp_path / "m.onnx", digits[0][:50]

    def off(file):
        return OnnxInt8Exporter().verify(network, file, images).mean_difference

    assert write(network, path, calibration).kept == ()
    before = off(path)
    given = replace(calibration, loss=off, max_loss=before / 5)
    written = write(network, path, given)
    assert set(written.kept) == {"first", "second"}
    assert written.loss == pytest.approx(off(path))
    assert off(path) < before / 5


# bad input ----------------------------------------------------------------------------------------


def test_too_few_calibration_images_are_refused(learnt, digits, tmp_path):
    for given, count in ((None, 0), (Calibration(images=digits[0][:15]), 15)):
        with pytest.raises(ExportError, match=f"16 calibration images or more, got {count}"):
            write(learnt["convolutional"], tmp_path / "m.onnx", given)
    assert not (tmp_path / "m.onnx").exists()


def test_images_of_another_size_are_refused(learnt, tmp_path):
    given = Calibration(images=torch.zeros(16, 3, 8, 8))
    with pytest.raises(ExportError, match=r"on calibration images of shape \(3, 8, 8\)"):
        write(learnt["convolutional"], tmp_path / "m.onnx", given)


def test_a_network_that_is_not_finite_is_refused(calibration, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        network[1].bias[1] = float("nan")
    with pytest.raises(ExportError, match="outputs of the network are not finite"):
        write(network, tmp_path / "m.onnx", calibration)


class Normalised(nn.Module):
    def forward(self, x):
        return torch.erf(nn.functional.layer_norm(x.flatten(1), (64,)))


def test_a_network_of_which_nothing_can_be_quantised_is_refused(calibration, tmp_path):
    network = Normalised().eval()
    with pytest.raises(ExportError, match=r"nothing in it can be quantised.*Erf, .*LayerNorm"):
        write(network, tmp_path / "m.onnx", calibration)
    [path] = OnnxInt8Exporter().quick([(network, (1, 8, 8))], tmp_path, ["timed"])
    assert run_onnx(path, np.zeros((1, 1, 8, 8), np.float32)).shape == (1, 64)


def test_an_operator_without_int8_stays_in_float(calibration, digits, tmp_path):
    network = nn.Sequential(Normalised(), nn.Linear(64, 10)).eval()
    path = tmp_path / "m.onnx"
    write(network, path, calibration)
    found = run_as(path, tmp_path)
    assert (found["Erf"], found["LayerNormalization"], found["QGemm"]) == (1, 1, 1)
    assert OnnxInt8Exporter().verify(network, path, digits[0][:50]).top1_agreement > 0.9


def test_parts_that_can_not_be_exported_are_named(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[0]

    with pytest.raises(ExportError, match=r"odd\.onnx"):
        OnnxInt8Exporter().quick([(Odd(), (1, 8, 8))], tmp_path, ["odd"])
