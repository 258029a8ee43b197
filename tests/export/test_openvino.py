from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tailorbird.data.digits import digits
from tailorbird.device import OPENVINO
from tailorbird.errors import ExportError, StoreError
from tailorbird.export.exporters import Calibration, exporter_for
from tailorbird.export.onnx import metadata_of as onnx_metadata_of
from tailorbird.export.openvino_int8 import SETTINGS, layers
from tailorbird.export.options import ExportOptions
from tailorbird.export.verify import Agreement, Parity
from tailorbird.measure.devices.openvino import OpenVino
from tailorbird.measure.openvino import read, run_openvino, weights_of
from tests.marks import needs_openvino

pytestmark = needs_openvino

FLOAT32, FLOAT16, INT8 = (exporter_for(OPENVINO, name) for name in ("float32", "float16", "int8"))
PLAIN = ExportOptions()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=seeded(seed))


def small(*, width=8, bias=False):
    """A network of two convolutions and a linear layer for digits."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=bias),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias),
        nn.BatchNorm2d(2 * width),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 10),
    )


@pytest.fixture(scope="module")
def data():
    """Part of the split -> images, normalised, and labels."""
    whole = digits(image_size=8)
    return {name: next(getattr(whole, name).batches(2000)) for name in ("train", "test")}


@pytest.fixture(scope="module")
def trained(data):
    """The small network, trained for a second or two on the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = small()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    images, labels = data["train"]
    for epoch in range(6):
        for rows in torch.randperm(len(images), generator=seeded(epoch)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def int8(trained, data, tmp_path_factory):
    """The trained network's file in int8, and how it was made."""
    path = tmp_path_factory.mktemp("int8") / "model.xml"
    calibration = Calibration(images=data["train"][0][:48])
    made = INT8.final(trained, (1, 8, 8), path, options=PLAIN, metadata={}, calibration=calibration)
    return path, made


def correct(outputs, labels):
    return float((np.asarray(outputs).argmax(1) == labels.numpy()).mean())


def kinds(path):
    return Counter(one.get_type_name() for one in read(path).get_ops())


def test_digits_in_int8_answer_as_in_float32(trained, data, int8, tmp_path):
    path, made = int8
    images, labels = data["test"]
    exact = tmp_path / "model.xml"
    assert FLOAT32.final(trained, (1, 8, 8), exact, options=PLAIN, metadata={}).calibration == ""
    device = OpenVino()
    parity = FLOAT32.verify(trained, exact, images, device.run)
    assert isinstance(parity, Parity)
    assert parity.passed
    right = correct(device.run(exact, images.numpy()), labels)
    assert right > 0.9
    assert correct(device.run(path, images.numpy()), labels) > right - 0.02
    agreed = INT8.verify(trained, path, images, device.run)
    assert isinstance(agreed, Agreement)
    assert agreed.passed
    assert (agreed.precision, agreed.images) == ("int8", len(images))
    assert agreed.top1_agreement > 0.97
    assert 0 < agreed.mean_difference < agreed.worst_difference
    assert made.calibration in {one.name for one in SETTINGS}
    assert (made.kept, made.loss) == ((), None)
    assert len(layers(read(path))) == 3
    assert weights_of(path).stat().st_size < 0.35 * weights_of(exact).stat().st_size


def test_another_networks_int8_file_is_told(trained, int8):
    path, _ = int8
    other = deepcopy(trained)
    with torch.no_grad():
        other[7].bias[3] += 100
    found = INT8.verify(other, path, noise(4, 1, 8, 8))
    assert found.worst_difference == pytest.approx(100, abs=5)
    assert found.fault.startswith("by ")
    assert found.top1_agreement < 1


def test_weights_in_float16_take_half_the_space(trained, tmp_path):
    for exporter in (FLOAT32, FLOAT16):
        path = tmp_path / exporter.precision / "model.xml"
        exporter.final(trained, (1, 8, 8), path, options=PLAIN, metadata={"note": "1"})
    half, full = tmp_path / "float16" / "model.xml", tmp_path / "float32" / "model.xml"
    assert weights_of(half).stat().st_size < 0.55 * weights_of(full).stat().st_size
    found = FLOAT16.verify(trained, half, noise(6, 1, 8, 8))
    assert isinstance(found, Agreement)
    assert 0 < found.worst_difference < 0.05
    FLOAT16.relabel(half, tmp_path / "again.xml", {"note": "2"})
    assert weights_of(tmp_path / "again.xml").read_bytes() == weights_of(half).read_bytes()


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("batch", "opened"), [(8, False), (1, True)])
def test_fixed_and_open_batches(trained, data, tmp_path, precision, batch, opened):
    exporter, path = exporter_for(OPENVINO, precision), tmp_path / "model.xml"
    exporter.final(
        trained,
        (1, 8, 8),
        path,
        options=ExportOptions(dynamic_batch=opened, softmax=True),
        metadata={},
        batch=batch,
        calibration=Calibration(images=data["train"][0][:20]),
    )
    shape = read(path).input().get_partial_shape()
    assert str(shape) == ("[?,1,8,8]" if opened else "[8,1,8,8]")
    assert read(path).output().get_any_name() == "probabilities"
    found = exporter.verify(trained, path, data["test"][0][:19])
    assert found.images == 19
    assert found.passed
    assert found.top1_agreement > 0.9
    (timed,) = OpenVino(runs=5).measure([path])
    assert timed.median_ms > 0


def test_what_travels_in_a_file(int8, tmp_path):
    path, _ = int8
    about = {
        "tailorbird.classes": '["a & b", "<ü>", "\\"q\\"", "two\nlines\t"]',
        "tailorbird.mean": "[0.5]",
        "number": "5",
        "empty": "",
        "long": "x" * 50_000,
    }
    copy = tmp_path / "new" / "copy.xml"
    INT8.relabel(path, copy, about)
    assert INT8.metadata_of(copy) == about
    assert INT8.metadata_of(path) == {}
    assert weights_of(copy).read_bytes() == weights_of(path).read_bytes()
    given = noise(3, 1, 8, 8).numpy()
    assert np.array_equal(run_openvino(copy, given), run_openvino(path, given))
    INT8.relabel(copy, copy, {"left": "1"})
    assert INT8.metadata_of(copy) == {"left": "1"}
    with pytest.raises(ExportError, match=r"metadata need names of letters.*got 'a b'"):
        INT8.relabel(path, copy, {"a b": ""})
    assert INT8.metadata_of(copy) == {"left": "1"}


def test_files_are_whole_and_name_no_folder_of_this_machine(int8, trained, tmp_path):
    path, _ = int8
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    text = path.read_text()
    assert "/tmp" not in text
    assert "/home" not in text
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't write"):
        FLOAT32.final(trained, (1, 8, 8), tmp_path / "file" / "m.xml", options=PLAIN, metadata={})
    short = tmp_path / "short.xml"
    short.write_text(text)
    weights_of(short).write_bytes(weights_of(path).read_bytes()[:100])
    for call in (
        lambda: INT8.metadata_of(short),
        lambda: INT8.relabel(short, path, {}),
        lambda: INT8.metadata_of(tmp_path / "absent.xml"),
    ):
        with pytest.raises(StoreError, match="remove it to have it made anew"):
            call()


class Attention(nn.Module):
    """Tokens of an image, mixed twice by attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        kept = {"dim_feedforward": 32, "batch_first": True, "dropout": 0.0}
        layer = nn.TransformerEncoderLayer(16, 2, **kept)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class Odd(nn.Module):
    """What NNCF leaves alone, between what it does not."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, images):
        found = torch.cumsum(self.first(images), dim=3).sort(dim=2).values
        return self.last(torch.erf(found).amax((2, 3)))


@pytest.mark.parametrize(
    "make", [small, lambda: small(bias=True), Attention, Odd], ids=["bn", "bias", "vit", "odd"]
)
def test_files_that_are_timed_have_the_operators_of_those_that_are_shipped(tmp_path, make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = make().eval()
    final = tmp_path / "model.xml"
    calibration = Calibration(images=noise(16, 1, 8, 8))
    INT8.final(network, (1, 8, 8), final, options=PLAIN, metadata={}, calibration=calibration)
    (quick,) = INT8.quick([(network, (1, 8, 8))], tmp_path, ["quick"])
    assert len(layers(read(quick))) == len(layers(read(final))) > 0
    fakes = [kinds(path)["FakeQuantize"] for path in (quick, final)]
    assert fakes[0] == fakes[1]
    assert INT8.verify(network, final, noise(40, 1, 8, 8, seed=3)).top1_agreement > 0.7


def test_blocks_without_a_product_stay_as_they_are(tmp_path):
    (file,) = INT8.quick([(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), (1, 8, 8))], tmp_path, ["b"])
    assert kinds(file)["FakeQuantize"] == 0
    assert run_openvino(file, np.ones((2, 1, 8, 8), np.float32)).shape == (2, 1, 4, 4)


@pytest.mark.parametrize(
    ("network", "calibration", "words"),
    [
        (nn.Flatten(), None, "int8 needs calibration images"),
        (nn.Flatten(), noise(15, 1, 8, 8), "expected 16 or more calibration images, got 15"),
        (nn.Flatten(), noise(16, 1, 8, 9), r"shape \(1, 8, 9\), the network takes \(1, 8, 8\)"),
        (nn.Hardtanh(), noise(16, 1, 8, 8), "nothing in it can be quantised: Clamp, Parameter"),
    ],
)
def test_what_can_not_be_quantised(tmp_path, network, calibration, words):
    given = None if calibration is None else Calibration(images=calibration)
    with pytest.raises(ExportError, match=f"model.xml: .*{words}"):
        INT8.final(
            network,
            (1, 8, 8),
            tmp_path / "model.xml",
            options=PLAIN,
            metadata={},
            calibration=given,
        )
    assert [*tmp_path.iterdir()] == []


class Spread(nn.Module):
    """Four layers, of which the third takes values that are a thousand times apart."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
            self.hard, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        with torch.no_grad():
            self.two.weight *= 1e3
            self.hard.weight[:, 4:] /= 1e3

    def forward(self, images):
        found = torch.cat([self.one(images), self.two(images)], 1).relu()
        return self.head(self.hard(found).relu().amax((2, 3)))


def test_the_layer_that_costs_most_stays_in_float32(tmp_path):
    asked = []

    def loss(path):
        asked.append(len(layers(read(path))))
        return 3.0 if asked[-1] == 3 else 0.5

    def made(most):
        calibration = Calibration(images=noise(24, 1, 8, 8), loss=loss, max_loss=most)
        path, network = tmp_path / "model.xml", Spread().eval()
        return INT8.final(
            network, (1, 8, 8), path, options=PLAIN, metadata={}, calibration=calibration
        )

    found = made(1.0)
    assert (found.kept, found.loss) == (("hard",), 0.5)
    assert asked == [3, 2]
    assert len(layers(read(tmp_path / "model.xml"))) == 2
    found = made(3.0)
    assert (found.kept, found.loss) == ((), 3.0)
    assert len(layers(read(tmp_path / "model.xml"))) == 3
    assert made(0.1).kept == ("hard",)


def test_onnx_files_are_none_of_openvinos(tmp_path, trained):
    path = tmp_path / "model.xml"
    FLOAT32.final(trained, (1, 8, 8), path, options=PLAIN, metadata={"a": "b"})
    with pytest.raises(StoreError):
        onnx_metadata_of(path)
