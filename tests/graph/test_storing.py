"""What traces is stored: rebuilt, it has the same answers, gradients and exported file."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tailorbird.errors import GraphError, StoreError
from tailorbird.export.exporters import OnnxExporter
from tailorbird.export.options import ExportOptions
from tailorbird.graph.blocks import enumerate_blocks
from tailorbird.graph.serial import (
    code_of,
    from_spec,
    load_module,
    save_module,
    to_spec,
)
from tailorbird.graph.structure import structure_key
from tailorbird.graph.surgery import extract, induce
from tailorbird.graph.trace import trace
from tailorbird.measure.counts import count

from .storing_nets import CODED, FREE, HERE, SHAPE, Closed, Written, around

NETS = {name: (make, (), set()) for name, make in FREE.items()} | CODED


def made(name):
    """The network, left to live a little, and what it takes to trace and rebuild it."""
    make, leaves, code = NETS[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather have the new kind
        torch.manual_seed(0)
        return make().eval(), leaves, {f"{HERE}:{one}" for one in code}


def images(count=3):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def answers(module, count=3):
    """Logits and the gradients of all weights that have one, in order of name."""
    module.zero_grad()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        logits = module(images(count))
        (logits * torch.linspace(1, 2, logits.numel()).reshape(logits.shape)).sum().backward()
    return logits.detach(), [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", NETS)
def test_traced_cut_stored_and_rebuilt_it_is_the_same(name, tmp_path):
    network, leaves, code = made(name)
    before = copy.deepcopy(network.state_dict())
    graph = trace(network, SHAPE, leaves=leaves)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert set(save_module(graph.module, tmp_path, "net", {})) == code
    assert set(code_of(graph.module)) == code
    again, _ = load_module(tmp_path, "net", trust=code)
    assert structure_key(graph.module, SHAPE) == structure_key(again, SHAPE)
    assert to_spec(again) == to_spec(graph.module)
    for size in (1, 3):
        with torch.no_grad():
            assert torch.allclose(again(images(size)), network(images(size)), atol=1e-6)
        logits, gradients = answers(again, size)
        expected, wanted = answers(copy.deepcopy(graph.module), size)
        assert torch.equal(logits, expected)
        assert len(gradients) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
    for block in enumerate_blocks(graph)[:3]:
        part = extract(graph, block)
        save_module(part, tmp_path, "part", {})
        stitched = induce(graph, {block: load_module(tmp_path, "part", trust=code)[0]})
        with torch.no_grad():
            assert torch.allclose(stitched(images()), network(images()), atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "deformed", "new weight norm", "names", "straight"])
def test_what_was_rebuilt_exports_the_same(name, tmp_path):
    network, leaves, code = made(name)
    save_module(trace(network, SHAPE, leaves=leaves).module, tmp_path, "net", {})
    again, _ = load_module(tmp_path, "net", trust=code)
    exporter, path = OnnxExporter(), tmp_path / "net.onnx"
    exporter.final(again, SHAPE, path, options=ExportOptions(), metadata={})
    assert exporter.verify(network, path, images()).passed
    exporter.quick([(again, SHAPE)], tmp_path, ["quick"])


@pytest.mark.parametrize("name", ["weight norm", "new weight norm", "spectral norm", "masked"])
def test_computed_weights_are_plain_in_the_copy_and_computed_still_in_the_network(name):
    network, _, _ = made(name)
    names = [key for key, _ in network.named_parameters()]
    kinds = [type(part) for part in network.modules()]
    graph = trace(network, SHAPE)
    kept = {key for key, _ in graph.module.named_parameters()}
    assert {"_2.weight", "2.weight"} & kept
    assert not any(word in key for key in kept for word in ("_g", "_v", "orig", "parametri"))
    assert [key for key, _ in network.named_parameters()] == names
    assert [type(part) for part in network.modules()] == kinds
    network.train()(images())  # what makes its weights still runs


def test_a_frozen_computed_weight_stays_frozen():
    network, _, _ = made("frozen weight norm")
    weight = trace(network, SHAPE).module.get_parameter("2.weight")
    assert not weight.requires_grad


def test_blocks_lie_between_the_layers_of_an_encoder():
    graph = trace(made("encoder")[0], SHAPE)
    inner = [str(node.target) for node in graph.module.graph.nodes if node.op == "call_module"]
    assert inner == ["patches", "body.layers.0", "body.layers.1", "head"]
    blocks = {block.nodes for block in enumerate_blocks(graph)}
    assert ("body_layers_1",) in blocks
    matrices = 3 * 8 * 8 + 8 * 8 + 2 * 8 * 16
    assert graph.layer("body_layers_1").macs == 4 * matrices + 2 * 4 * 4 * 8


@pytest.mark.parametrize(("name", "gates"), [("lstm state", 4), ("gru", 3), ("rnn", 1)])
def test_multiply_accumulates_of_recurrent_layers_by_hand(name, gates):
    graph = trace(made(name)[0], SHAPE)
    steps, columns, hidden = 4, 16, 6
    macs = steps * gates * hidden * (columns + hidden)
    if name == "lstm state":  # a second layer
        macs += steps * gates * hidden * 2 * hidden
    assert graph.layer("layer").kind == "recurrent"
    assert graph.layer("layer").macs == macs
    assert graph.macs == count(graph.module, SHAPE).macs


def test_what_cannot_be_stored_is_said_and_nothing_is_written(tmp_path):
    graph = trace(around(Closed()), SHAPE, leaves=["2"])
    with pytest.raises(GraphError, match=r"'2' .*Closed\) can't be stored.*'act' holds a function"):
        save_module(graph.module, tmp_path, "net", {})
    assert list(tmp_path.iterdir()) == []
    assert code_of(graph.module) == ()


CODE = """
import warnings
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".ran").touch()

class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
"""


def test_code_is_imported_only_where_it_is_trusted(tmp_path: Path, monkeypatch):
    (tmp_path / "gates.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import gates

    network = around(gates.Gate())
    needs = save_module(trace(network, SHAPE, leaves=["2"]).module, tmp_path, "net", {})
    assert needs == ("gates:Gate",)
    monkeypatch.delitem(sys.modules, "gates")
    (tmp_path / "gates.ran").unlink()
    with pytest.raises(StoreError, match=r"net\.json: .*imported and run: gates:Gate; .*trust="):
        load_module(tmp_path, "net")
    with pytest.raises(StoreError, match="gates:Gate"):
        load_module(tmp_path, "net", trust=["gates:Other", "gates"])
    assert not (tmp_path / "gates.ran").exists()
    again, _ = load_module(tmp_path, "net", trust=needs)
    assert (tmp_path / "gates.ran").exists()
    assert torch.equal(again(images()), network(images()))


def test_trusted_code_that_is_gone_is_named(tmp_path):
    graph = trace(around(Written()), SHAPE, leaves=["2"])
    save_module(graph.module, tmp_path, "net", {})
    text = (tmp_path / "net.json").read_text().replace("storing_nets:Written", "storing_nets:Gone")
    with pytest.raises(StoreError, match="changed since it was written"):
        (tmp_path / "net.json").write_text(text)
        load_module(tmp_path, "net", trust=[f"{HERE}:Gone"])
    spec = _renamed(to_spec(graph.module), f"{HERE}:Gone")
    with pytest.raises(StoreError, match="has no 'Gone'"):
        from_spec(spec, trust=[f"{HERE}:Gone"])
    for other, text in (
        ("os:system", "expected a class of modules"),
        (f"{HERE}:Settings", "class"),
    ):
        with pytest.raises(StoreError, match=text):
            from_spec(_renamed(spec, other), trust=[other])


def _renamed(spec, path):
    def changed(value):
        if isinstance(value, dict):
            if set(value) == {"code"} and isinstance(value["code"], str):
                return {"code": path}
            return {key: changed(item) for key, item in value.items()}
        return [changed(item) for item in value] if isinstance(value, list) else value

    return changed(spec)
