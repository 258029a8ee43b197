"""What torch.fx can't read is read by torch.export, and is then a network like any other."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tailorbird.errors import GraphError
from tailorbird.export.exporters import OnnxExporter
from tailorbird.export.options import ExportOptions
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.channels import analyse
from tailorbird.graph.serial import load_module, save_module
from tailorbird.graph.surgery import extract, induce, split
from tailorbird.graph.trace import EXPORT, FX, trace

from . import export_nets
from .export_nets import NETS, READ_BY_FX, SHAPE, Around

HERE = "tests.graph.export_nets"


def images(count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def gradients(network: nn.Module, count: int) -> dict[str, float]:
    """The size of each weight's gradient, apart from names' prefixes, which graphs may change."""
    network.zero_grad()
    network(images(count)).square().sum().backward()
    return {
        n: p.grad.abs().sum().item() for n, p in network.named_parameters() if p.grad is not None
    }


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {name: kind() for name, kind in NETS.items()}
    for network in made.values():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return {name: network.eval() for name, network in made.items()}


@pytest.fixture(scope="module")
def graphs(networks):
    """Each network read by torch.export."""
    return {name: trace(network, SHAPE, ways=[EXPORT]) for name, network in networks.items()}


@pytest.mark.parametrize("name", NETS)
def test_stored_and_rebuilt_it_is_the_network_for_any_number_of_images(
    name, networks, graphs, tmp_path
):
    network, graph = networks[name], graphs[name]
    assert graph.read_by == EXPORT
    code = save_module(graph.module, tmp_path, "net", {})
    assert set(code) == ({f"{HERE}:Doubled"} if name == "Sequences" else set())
    again, _ = load_module(tmp_path, "net", trust=code)
    for count in (1, 7, 9):
        with torch.no_grad():
            assert torch.allclose(again(images(count)), network(images(count)), atol=1e-5)
    if name != "ChunkWritten":  # the network itself has no gradients
        found, wanted = gradients(again, 4), gradients(copy.deepcopy(network), 4)
        assert found == pytest.approx({key: wanted[key] for key in found}, rel=1e-4)
    for block in enumerate_blocks(graph)[:3]:
        save_module(extract(graph, block), tmp_path, "part", {})
        part, _ = load_module(tmp_path, "part", trust=code)
        stitched = induce(graph, {block: part})
        with torch.no_grad():
            assert torch.allclose(stitched(images(5)), network(images(5)), atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_it_is_the_second_way_and_taken_where_the_first_fails(name, networks):
    graph = trace(networks[name], SHAPE)
    assert graph.read_by == (FX if name in READ_BY_FX else EXPORT)
    assert bool(graph.notes) == (graph.read_by == EXPORT)


def test_layers_are_layers_under_their_names(graphs):
    for graph in graphs.values():
        called = [str(n.target) for n in graph.module.graph.nodes if n.op == "call_module"]
        assert "conv" in called
        assert called[-1] == "head.fc"
    used = {str(n.target) for n in graphs["Sequences"].module.graph.nodes}
    assert {"token", "attention", "cell", "drop"} <= used


def test_the_image_comes_first_as_cuts_expect(networks, graphs):
    assert all(graph.layers[0].kind == "input" for graph in graphs.values())
    assert any(layer.kind == "constant" for g in graphs.values() for layer in g.layers)
    for name, graph in graphs.items():
        block = enumerate_blocks(graph)[0]
        parts = split(graph, block)
        first, *others = parts.prefix(images(2))
        with torch.no_grad():
            found = parts.suffix(extract(graph, block)(first), *others)
            assert torch.allclose(found, networks[name](images(2)), atol=1e-5), name


def test_files_of_all_answer_as_the_networks(networks, graphs, tmp_path):
    exporter, names = OnnxExporter(), [name for name in NETS if name != "Sequences"]
    paths = exporter.quick([(graphs[n].module, SHAPE) for n in names], tmp_path, names)
    for name, path in zip(names, paths, strict=True):
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: images(1).numpy()})
        with torch.no_grad():
            wanted = networks[name](images(1))
        assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4), name


@pytest.mark.parametrize("name", ["ViewsWritten", "Checked"])
def test_the_file_that_is_shipped_takes_any_number_of_images(name, networks, graphs, tmp_path):
    exporter, path = OnnxExporter(), tmp_path / "net.onnx"
    options = ExportOptions(dynamic_batch=True)
    exporter.final(graphs[name].module, SHAPE, path, options=options, metadata={})
    assert exporter.verify(networks[name], path, images(6)).passed


def test_layers_follow_the_mode():
    class Body(Around):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout2d(0.5)

        def middle(self, x):
            x = self.drop(self.norm(x))
            x[:, :4].mul_(2)
            return x if len(x) else x[:0]

    graph = trace(Body(), SHAPE)
    assert graph.read_by == EXPORT
    module = copy.deepcopy(graph.module).train()
    assert not torch.equal(module(images(4)), module(images(4)))
    assert module.norm.num_batches_tracked == 2
    assert "left out" in graph.notes[0]


class Asks(nn.Module):
    """Asks for a value, so it has to be a leaf."""

    def forward(self, x):
        return x.relu() if x.mean() > 0 else x.sigmoid()


def test_a_leaf_may_ask_for_values_either_way():
    class Both(export_nets.ViewsWritten):
        def __init__(self):
            super().__init__()
            self.choice = Asks()

        def middle(self, x):
            return super().middle(self.choice(x))

    network = Both().eval()
    graph = trace(network, SHAPE, leaves=["choice"])
    assert graph.read_by == EXPORT
    assert graph.layer("choice").shape == (8, 8, 8)
    with torch.no_grad():
        for count in (2, 6):
            assert torch.allclose(graph.module(images(count)), network(images(count)), atol=1e-5)
            assert torch.allclose(graph.module(-images(count)), network(-images(count)), atol=1e-5)


def test_state_that_is_written_is_said():
    class Counts(Around):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def middle(self, x):
            self.calls += 1
            left, _ = x.chunk(2, 1)
            return self.part(torch.cat([left, left.view_as(left)], 1).narrow(1, 0, 8))

    graph = trace(Counts(), SHAPE, ways=[EXPORT])
    assert graph.notes[1] == "what it writes into calls is left out"


class Rows(Around):
    def middle(self, x):
        return torch.stack([self.part(row) for row in x])


class Bright(Around):
    def middle(self, x):
        return self.part(x) if x.mean() > 0 else x


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Rows, "on some numbers of images only|on 2 images at once"),
        (Bright, "[Dd]ata-dependent"),
    ],
)
def test_where_both_ways_fail_both_are_told(kind, text):
    with pytest.raises(
        GraphError,
        match=rf"^can't trace {kind.__name__}\.forward .* torch\.export, which was tried next, "
        rf"can't read it either: .*({text})",
    ):
        trace(kind(), SHAPE)


def test_ways_have_names():
    with pytest.raises(GraphError, match=r"ways: expected some of \['torch.fx', 'torch.export'\]"):
        trace(Rows(), SHAPE, ways=["jit"])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused_in_a_sentence():
    network = nn.Sequential(torch.jit.script(nn.Conv2d(3, 8, 3)), nn.Flatten())
    with pytest.raises(GraphError, match=r"Sequential holds TorchScript, .*: give those"):
        trace(network, SHAPE)


def test_nothing_is_left_behind(graphs):
    assert graphs
    assert not {"int", "len", "type"} & vars(export_nets).keys()
    with pytest.raises(KeyError):
        torch.ops.tailorbird.layer(0, [torch.zeros(1, device="meta")], [])


KNOWN = {
    "resnet18": lambda: (torchvision.models.resnet18(num_classes=5), 64),
    "mobilenet_v3_small": lambda: (torchvision.models.mobilenet_v3_small(num_classes=5), 64),
    "vit": lambda: (timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64), 64),
    "convnext": lambda: (timm.create_model("convnext_atto", depths=(1, 1, 2, 1)), 64),
}


@pytest.mark.parametrize("name", KNOWN)
def test_either_way_reads_the_same(name):
    network, size = KNOWN[name]()
    shape = (3, size, size)
    one, other = (trace(network.eval(), shape, ways=[way]) for way in (FX, EXPORT))
    assert (one.macs, one.params) == (other.macs, other.params)
    kinds = ("conv", "linear", "norm", "activation", "dropout", "attention")
    for kind in kinds:
        assert [x.macs for x in one.layers if x.kind == kind] == [
            x.macs for x in other.layers if x.kind == kind
        ]
    assert len(enumerate_blocks(other)) >= 0.9 * len(enumerate_blocks(one))
    free = [
        sum(group.size for group in analyse(graph.module, shape).groups if group.prunable)
        for graph in (one, other)
    ]
    assert free[1] >= 0.9 * free[0] > 0
