import copy

import pytest
import torch
from torch import fx, nn

from tailorbird.errors import MeasurementError
from tailorbird.export.onnx import export_onnx
from tailorbird.measure.counts import Counts, count
from tests.export.test_onnx import Attention, Residual, SqueezeExcite
from tests.fakes import onnx_macs


def activations(module, shape):
    counts = count(module, shape)
    return round(1e6 * (counts.peak_memory_mb - counts.size_mb))


def test_hand_counted_convolutions():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    )
    counts = count(net, (3, 6, 6))
    assert counts.macs == 36 * 8 * 27 + 9 * 8 * 9
    assert counts.params == 8 * 27 + 8 + 8 * 9 + 8
    assert counts.size_mb == pytest.approx(4e-6 * counts.params)
    assert counts.as_metrics() == {
        "macs": counts.macs,
        "params": counts.params,
        "size_mb": counts.size_mb,
        "peak_memory_mb": counts.peak_memory_mb,
    }


def test_attention_counts_both_products_and_projections():
    tokens, width = 6, 8
    linear = tokens * width * (3 * width + 2 * width + 2 * width)
    assert count(Attention(width, 2), (tokens, width)).macs == linear + 2 * tokens * tokens * width
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count(encoder, (6, 8)).macs == 6 * 8 * (24 + 8 + 16 + 16) + 2 * 36 * 8
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Residual(8, 16, 2), (8, 9, 9)), (Attention(8, 2), (6, 8)), (SqueezeExcite(8), (8, 7, 7))],
)
def test_macs_agree_with_the_exported_graph(tmp_path, module, shape):
    import onnx

    path = export_onnx(module, shape, tmp_path / "m.onnx")
    assert count(module, shape).macs == onnx_macs(onnx.load(path))


def test_shared_weights_and_buffers():
    linear = nn.Linear(4, 4, bias=False)
    assert count(nn.Sequential(linear, linear), (4,)).params == 16
    assert count(nn.Sequential(linear, linear), (4,)).macs == 32
    norm = count(nn.BatchNorm2d(4), (4, 2, 2))
    assert norm.params == 8
    assert norm.size_mb == pytest.approx((16 * 4 + 8) / 1e6)  # and the batch counter


@pytest.mark.parametrize("inplace", [False, True])
def test_peak_of_a_chain_is_its_largest_neighbours(inplace):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Dropout(0.5, inplace),
        nn.Conv2d(4, 8, 1), nn.ReLU6(inplace), nn.Conv2d(8, 1, 1),
    )  # fmt: skip
    assert activations(net, (2, 5, 5)) == 4 * 25 * (4 + 8)


class Skip(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        self.wide, self.back = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = x + 1
        y = self.back(self.wide(first).view(1, 8, -1).view(1, 8, 5, 5))
        return y + first if self.keep else y


def test_a_skip_keeps_its_tensor_alive():
    # wide and back live together; the skip adds its source, but not the dead input
    assert activations(Skip(keep=False), (2, 5, 5)) == 4 * 25 * (8 + 2)
    assert activations(Skip(keep=True), (2, 5, 5)) == 4 * 25 * (2 + 8 + 2)


def test_argument_is_left_alone_and_wrong_input_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(net.state_dict())
    assert isinstance(count(net, (3, 8, 8)), Counts)
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(MeasurementError, match=r"input of shape \(1, 5, 8, 8\).*give the input"):
        count(net, (5, 8, 8))


def test_a_graph_counts_as_its_network_and_is_left_alone():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)]
    graph = fx.symbolic_trace(nn.Sequential(*layers)).eval()
    before = copy.deepcopy(graph.state_dict())
    found = count(graph, (3, 6, 6))
    assert found == count(copy.deepcopy(graph).train(), (3, 6, 6))
    assert found == count(copy.deepcopy(graph).double(), (3, 6, 6))
    assert all(torch.equal(before[k], v) for k, v in graph.state_dict().items())
    assert not graph.training


class Called(nn.Module):
    """Counts how often it ran."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


def test_a_network_that_running_changes_is_copied():
    net = nn.Sequential(Called(), nn.ReLU()).eval()
    assert count(net, (4,)).macs == 16
    assert net[0].calls == 0


def test_a_recurrent_layer_counts_both_of_its_products():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    assert count(Last(), (7, 3)).macs == 7 * 4 * 5 * (3 + 5)
