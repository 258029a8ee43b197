"""Every way out that an error of this package names is taken here, and leads somewhere."""

from __future__ import annotations

import ast
import re
import threading

import pytest
import torch
import yaml
from torch import fx, nn

from tailorbird.errors import GraphError, StoreError
from tailorbird.graph.adapt import fit_shape
from tailorbird.graph.blocks import blocks_from
from tailorbird.graph.channels import analyse, prune
from tailorbird.graph.serial import from_spec, load_module, save_module, to_spec
from tailorbird.graph.surgery import capture, extract, induce
from tailorbird.graph.trace import trace
from tailorbird.house.options import HouseOptions

from .storing_nets import SHAPE, Apply, Closed, Written, around, double


def refused(call, *arguments, **named) -> str:
    with pytest.raises((GraphError, StoreError)) as caught:
        call(*arguments, **named)
    return str(caught.value)


def quoted(text: str, before: str) -> list[str]:
    """The Python list that stands behind some words of a message."""
    found = re.search(re.escape(before) + r"(\[[^\]]*\])", text)
    assert found, text
    return ast.literal_eval(found.group(1))


# ---------------------------------------------------------------- tracing


@pytest.mark.parametrize("name", ["3", "choose it", 'say "no"'])
def test_a_leaf_as_printed_for_python_and_for_job_files(name, tmp_path):
    network = around(nn.Sequential())
    network.get_submodule("2").add_module(name, Written())
    text = refused(trace, network, SHAPE)
    leaves = quoted(text, "leaves=")
    assert leaves == [f"2.{name}"]
    job = yaml.safe_load(re.search(r"house: (\{leaves: \[.*?\]\})", text).group(1))
    assert HouseOptions(leaves=tuple(job["leaves"])).leaves == tuple(leaves)
    graph = trace(network, SHAPE, leaves=leaves)
    code = save_module(graph.module, tmp_path, "net", {})
    again, _ = load_module(tmp_path, "net", trust=code)
    assert torch.equal(again(torch.ones(2, *SHAPE)), network.eval()(torch.ones(2, *SHAPE)))


def test_the_module_around_a_line_that_resists_is_a_leaf_too():
    network = around(nn.Sequential(nn.Sequential(Written())))
    assert trace(network, SHAPE, leaves=["2"]).layer("_2").kind == "composite"
    assert trace(network, SHAPE, leaves=[Written]).layer("_2_0_0").kind == "composite"


def test_a_line_of_the_network_itself_moves_into_a_submodule():
    class Choice(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Whole(nn.Module):
        def __init__(self, choice):
            super().__init__()
            self.choice, self.conv, self.head = choice, nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv(x)
            x = (x if x.sum() > 0 else -x) if self.choice is None else self.choice(x)
            return self.head(x.mean((2, 3)))

    text = refused(trace, Whole(None), SHAPE)
    assert "Move that line into a submodule and mark that as a leaf" in text
    assert trace(Whole(Choice()), SHAPE, leaves=["choice"]).output == "head"


def test_near_names_of_leaves_are_modules():
    near = quoted(refused(trace, around(Written()), SHAPE, leaves=["2.conf"]), "near: ")
    assert near == ["2.conv"]
    assert trace(around(Apply(double)), SHAPE, leaves=["2"]).layer("_2").kind == "other"


def test_another_shape_runs():
    text = refused(trace, around(), (1, 8, 8))
    assert "Check input_shape (channels, height, width)" in text
    assert trace(around(), SHAPE).input_shape == SHAPE


def test_a_network_of_several_answers_is_wrapped():
    class Two(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Two()

        def forward(self, x):
            return self.inner(x)[0]

    assert "wrap the network so that forward returns its logits" in refused(trace, Two(), SHAPE)
    assert trace(Logits(), SHAPE).layers[-1].shape == (3,)


def test_what_cannot_be_copied_is_left_out_or_copies_itself():
    class Locked(Apply):
        def __init__(self):
            super().__init__(double)
            self.lock = threading.Lock()

    class Copies(Locked):
        def __deepcopy__(self, memo):
            return Apply(self.function)

    text = refused(trace, around(Locked()), SHAPE)
    assert "leave out what it holds beside layers, or give it a __deepcopy__" in text
    assert trace(around(Copies()), SHAPE).macs
    without = Locked()
    del without.lock
    assert trace(around(without), SHAPE).macs


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Views(nn.Module):
    def forward(self, x):
        x = x.clone()
        view = x.flatten(2).transpose(1, 2)
        view.mul_(2)
        return x


def test_what_writes_into_views_is_a_leaf_and_state_is_left_out():
    text = refused(trace, around(Counter()), SHAPE)
    assert "what keeps state from call to call has to be written without" in text
    assert trace(around(Apply(double)), SHAPE).macs
    assert "mark the module that does so as a leaf" in text
    network = around(Views()).eval()
    assert trace(network, SHAPE).read_by == "torch.export"
    graph = trace(network, SHAPE, leaves=["2"])
    images = torch.randn(2, *SHAPE)
    assert torch.equal(graph.module(images), network(images))


# ---------------------------------------------------------------- storing


def test_hooks_are_removed_first_or_built_in():
    network = around()
    hook = network[0].register_forward_hook(lambda module, args, out: 2 * out)
    module = trace(network, SHAPE, ways=["torch.fx"]).module
    assert "remove them first, or build what they do into the network" in refused(to_spec, module)
    assert to_spec(trace(network, SHAPE).module)["code"] == []
    hook.remove()
    assert to_spec(trace(network, SHAPE, ways=["torch.fx"]).module)["code"] == []


def test_what_stands_nowhere_moves_to_the_top_of_a_module():
    text = refused(to_spec, trace(around(Closed()), SHAPE, leaves=["2"]).module)
    assert "Give it a class at the top of a module, with plain attributes" in text
    leaf = Closed()
    leaf.act = double
    spec = to_spec(trace(around(leaf), SHAPE, leaves=["2"]).module)
    assert len(spec["code"]) == 2
    assert "or write it so that torch.fx can trace it" in text
    plain = Apply(torch.tanh)
    assert to_spec(trace(around(plain), SHAPE, leaves=["2"]).module)["code"] == []


def test_a_function_moves_to_the_top_of_a_module():
    def calling(function):
        graph = fx.Graph()
        graph.output(graph.call_function(function, (graph.placeholder("x"),)))
        return fx.GraphModule(nn.Module(), graph)

    text = refused(to_spec, calling(lambda x: x))
    assert "use functions of torch, or one that stands at the top of a module" in text
    assert to_spec(calling(torch.relu))["code"] == []
    assert to_spec(calling(double))["code"] == [f"{double.__module__}:double"]


def test_a_network_is_traced_to_be_stored():
    text = refused(to_spec, around())
    assert "trace it with tailorbird.graph.trace.trace(model, input_shape).module" in text
    assert to_spec(trace(around(), SHAPE).module)


def test_code_is_trusted_as_printed(tmp_path):
    graph = trace(around(Written()), SHAPE, leaves=["2"])
    save_module(graph.module, tmp_path, "net", {})
    trust = quoted(refused(load_module, tmp_path, "net"), "trust=")
    load_module(tmp_path, "net", trust=trust)
    trust = quoted(refused(from_spec, to_spec(graph.module)), "trust=")
    from_spec(to_spec(graph.module), trust=trust)


@pytest.mark.parametrize("damage", ["delete both", "delete it"])
def test_damaged_files_are_deleted_and_written_again(damage, tmp_path):
    module = trace(around(), SHAPE).module
    save_module(module, tmp_path, "net", {})
    path = tmp_path / ("net.safetensors" if damage == "delete both" else "net.json")
    path.write_bytes(path.read_bytes()[:-3])
    assert damage in refused(load_module, tmp_path, "net").lower()
    for file in tmp_path.iterdir():
        file.unlink()
    save_module(module, tmp_path, "net", {})
    load_module(tmp_path, "net")


# ---------------------------------------------------------------- cutting and stitching


def test_blocks_are_of_the_same_trace_apart_and_well_named():
    graph, other = (trace(around(nn.Conv2d(8, 8, 1)), SHAPE) for _ in range(2))
    deeper = trace(around(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), SHAPE)
    stranger = blocks_from(deeper, "_6")[0]
    assert "take blocks from blocks_from or enumerate_blocks" in refused(extract, other, stranger)
    one, two = blocks_from(graph, "_2")[0], blocks_from(graph, "_1")[1]
    both = {one: extract(graph, one), two: extract(graph, two)}
    assert "overlap; replace one of them" in refused(induce, graph, both)
    network = induce(graph, {one: extract(graph, one)}, prefix="_")
    again = trace(network, SHAPE)
    block = blocks_from(again, "_0")[0]
    text = refused(induce, again, {block: extract(again, block)}, prefix="_")
    assert "choose another prefix=" in text
    induce(again, {block: extract(again, block)}, prefix="other_")


def test_a_replacement_of_another_shape_gets_an_adapter():
    graph = trace(around(nn.Conv2d(8, 8, 1), nn.ReLU()), SHAPE)
    halving = nn.Conv2d(6, 6, 3, 2, 1)
    donor = trace(around(nn.Conv2d(6, 6, 1), nn.ReLU(), halving, width=6), SHAPE)
    block = blocks_from(graph, "_2")[0]
    text = refused(induce, graph, {block: nn.Conv2d(8, 6, 1)})
    assert "add an adapter" in text
    noise = torch.Generator().manual_seed(0)

    def fitted(start):
        source = blocks_from(donor, start)[0]
        body, native = extract(donor, source), source.in_shape
        return fit_shape(body, block.in_shape, block.out_shape, native_in=native, generator=noise)

    induce(graph, {block: fitted("_2")})
    assert "choose another donor block" in refused(fitted, "_4")


def test_near_layers_exist():
    graph = trace(around(), SHAPE)
    near = quoted(refused(graph.layer, "_00"), "near matches: ")
    assert near and graph.layer(near[0]).name == near[0]
    capture(graph, [near[0]])


# ---------------------------------------------------------------- channels


def test_a_body_of_two_inputs_is_extracted_as_a_block_and_run_at_its_shape():
    graph = fx.Graph()
    graph.output(graph.call_function(torch.add, (graph.placeholder("a"), graph.placeholder("b"))))
    text = refused(analyse, fx.GraphModule(nn.Module(), graph), SHAPE)
    assert "extract it as a block" in text
    traced = trace(around(nn.Conv2d(8, 8, 1)), SHAPE)
    block = blocks_from(traced, "_2")[0]
    body = extract(traced, block)
    assert analyse(body, block.in_shape).groups
    text = refused(analyse, body, (5, 4, 4))
    assert "give the input shape that the block was made for" in text


def test_one_channel_at_least_is_kept():
    body = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
    assert "keep one at least" in refused(prune, body, SHAPE, {1: []})
    assert prune(body, SHAPE, {1: [3]}).get_submodule("1").in_channels == 1
