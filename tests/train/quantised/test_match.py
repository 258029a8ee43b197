import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from tailorbird.train.quantised.expand import expand
from tailorbird.train.quantised.fakes import FakeConstant
from tailorbird.train.quantised.match import fake_quantised
from tailorbird.train.quantised.onnx_places import read_onnx
from tailorbird.train.quantised.places import Constant, Grid, Place, Places
from tests.train.quantised.makers import BATCH, as_written, quantise

SHAPE = (1, 8, 8)


class Block(nn.Module):
    """Patches, attention, a gated multi-layer perceptron; linear layers over tokens."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.act = nn.SiLU()
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 16, 3, self.heads, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 16)
        x = x + self.out(y)
        x = x + self.down(self.act(self.up(x)))
        return self.head(F.hardswish(x.mean(1)))


@pytest.fixture(scope="module")
def block():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fx.symbolic_trace(Block().eval())


@pytest.fixture(scope="module")
def images():
    return torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))


def fold(grid):
    return lambda values: (grid.whole(values) - grid.zero_point) * grid.scale


def test_a_transformer_is_matched_inside_of_attention(block, images, tmp_path):
    path = tmp_path / "model.onnx"
    file = quantise(block, SHAPE, images, path, op_types_to_quantize=OPERATORS)
    places = read_onnx(file, images)
    network = fake_quantised(block, places, images)
    assert network.unmatched == ()
    assert {"softmax", "sigmoid", "hardsigmoid"} <= rounded_behind(network.network)
    assert network.state_of_plain().keys() == block.state_dict().keys()
    with torch.no_grad():
        ours, exact, theirs = network(images), block(images), as_written(file, images)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(exact, theirs, atol=1e-3)


def rounded_behind(graph):
    """Names of nodes that are rounded at once."""
    return {
        node.all_input_nodes[0].name
        for node in graph.graph.nodes
        if node.op == "call_module" and str(node.target).startswith("quantised.place")
    }


OPERATORS = [
    "Conv",
    "MatMul",
    "Gemm",
    "Add",
    "Mul",
    "Sigmoid",
    "HardSigmoid",
    "Softmax",
    "Transpose",
    "Reshape",
]


def test_what_is_taken_apart_computes_the_same(block, images):
    other = fx.symbolic_trace(Block().eval())
    other.load_state_dict(block.state_dict())
    expand(other)
    names = {node.name for node in other.graph.nodes}
    assert {"softmax", "sigmoid", "hardsigmoid"} <= names
    with torch.no_grad():
        assert torch.allclose(other(images), block(images), atol=1e-5)


class Both(nn.Module):
    """A value that is read as it is, and behind a ReLU."""

    def forward(self, x):
        y = x * 2
        return y.relu() + y


def place(values, grid, name="there"):
    return Place(name=name, grid=grid, values=fold(grid)(values))


def test_a_value_that_others_read_as_it_is_stays_so():
    grid = Grid(scale=0.1, zero_point=0, low=0, high=255)
    images = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    places = Places(activations=(place(2 * images, grid),), constants=())
    network = fake_quantised(Both(), places, images)
    wanted = fold(grid)(2 * images) + 2 * images
    assert torch.allclose(network(images), wanted, atol=1e-6)


def test_a_place_that_nothing_is_like_is_told():
    grid = Grid(scale=0.1, zero_point=128, low=0, high=255)
    images = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    constant = Constant(
        name="weights",
        values=torch.ones(3, 3),
        steps=torch.ones(1, 1),
        axis=None,
        zero_points=torch.zeros(1, 1),
        low=-127,
        high=127,
        symmetric=True,
    )
    places = Places(activations=(place(images.sin() * 9, grid),), constants=(constant,))
    assert fake_quantised(Both(), places, images).unmatched == ("there", "weights")


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_of_weights_are_those_of_onnxruntime(axis, symmetric):
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.quant_utils import quantize_data

    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) + 0.3
    low, high = (-127, 127) if symmetric else (0, 255)
    kind = QuantType.QInt8 if symmetric else QuantType.QUInt8
    constant = Constant(
        name="w",
        values=weights,
        steps=torch.ones(1, 1),
        axis=axis,
        zero_points=torch.zeros(1, 1),
        low=low,
        high=high,
        symmetric=symmetric,
    )
    rows = [weights.flatten()] if axis is None else list(weights.unbind(axis))
    theirs = []
    for row in rows:
        zero, scale, whole = quantize_data(row.numpy(), kind.tensor_type, symmetric)[-3:]
        theirs.append((torch.from_numpy(whole).float() - float(zero)) * float(scale))
    wanted = theirs[0].reshape(3, 4) if axis is None else torch.stack(theirs, axis)
    assert torch.allclose(FakeConstant(constant)(weights), wanted, atol=1e-6)


@pytest.mark.parametrize(("held", "then"), [(0.13, 0.126), (0.2, 0.2)])
def test_a_bias_is_rounded_to_products(held, then):
    """A linear layer with a bias of 32 bits keeps to what its products can add up to, and begins
    with the file's bias where that is more than rounded.
    """
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.5]]))
        layer.bias.fill_(0.126)
    steps = torch.tensor([[0.01]])
    constant = Constant(
        name="w",
        values=torch.tensor([[1.27, 0.5]]),
        steps=steps,
        axis=0,
        zero_points=torch.zeros(1, 1),
        low=-127,
        high=127,
        symmetric=True,
        bias=torch.tensor([held]),
        bias_steps=torch.tensor([0.01]),
    )
    places = Places(activations=(), constants=(constant,))
    network = fake_quantised(nn.Sequential(layer), places, torch.zeros(1, 2))
    assert network(torch.zeros(1, 2)).item() == pytest.approx(held)
    assert network.state_of_plain()["0.bias"].item() == pytest.approx(then)
