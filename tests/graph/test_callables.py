"""What a stored network may call is a closed list, without a way to files or the process."""

from __future__ import annotations

import inspect
import operator
from pathlib import Path

import pytest
import torch
import torchvision

from tailorbird.errors import StoreError
from tailorbird.graph import callables
from tailorbird.graph.callables import (
    code_path,
    function_name,
    functions,
    is_method,
    methods,
    resolve_class,
    resolve_code,
    resolve_function,
)

LISTED = Path(__file__).with_name("callables.txt")
"""All names, as somebody has looked through them. To allow another, add a line and say why."""


def listed():
    layers = {f"{module}.{name}" for module, names in callables._LAYERS.items() for name in names}
    return (
        {name.replace("torch.nn.functional", "F") for name in functions()}
        | {f"Tensor.{name}" for name in methods()}
        | layers
        | {
            f"torch.ops.{library}.{name}"
            for library, names in callables._LIBRARY_OPERATORS.items()
            for name in names
        }
    )


def test_the_list_is_closed():
    known = set(LISTED.read_text().split())
    assert sorted(listed() - known) == []
    assert len(known - listed()) < len(known) // 10  # other versions of torch lack a few


def test_nothing_on_the_list_takes_a_file_or_is_our_own():
    wrong = {"filename", "file", "path", "url", "fname", "out_file"}
    for name, function in functions().items():
        assert not isinstance(function, type) or function.__module__ == "builtins", name
        assert not name.startswith(("tailorbird", "os", "sys"))
        try:
            parameters = set(inspect.signature(function).parameters)
        except ValueError:
            continue  # built in C, and declared by torch to work on tensors
        assert not parameters & wrong, name
    for module, names in callables._LAYERS.items():
        own = (module, names) == ("tailorbird.graph.passes", ("assign",))  # writes to a copy
        assert own or module.startswith(("timm.", "torchvision."))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.open",
        "torch.load",
        "torch.save",
        "torch.from_file",
        "torch.autocast",
        "torch.compile",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.relu",
        "torch.ops.load_library",
        "torch.ops.torchvision._cuda_version",
        "torch.ops.prims.add.default",
        "torch.ops.aten.__class__.default",
        "torch.hub.load",
        "torchvision.ops.misc.Conv2d",
        "torchvision.io.read_file",
        "torchvision.models._api.get_weight",
        "timm.models._helpers.load_checkpoint",
        "timm.layers.attention.torch",
        "operator.setitem",
        "operator.methodcaller",
        "tailorbird.files.write_bytes",
        "tailorbird.supernet.store.save_supernet",
        "tailorbird.supernet.architecture.load_space",
        "tailorbird.graph.serial.save_module",
        "tailorbird.graph.masks.cut_masks",
        "",
        "torch",
    ],
)
def test_everything_else_is_refused(name):
    with pytest.raises(StoreError, match="a stored network may call nothing else"):
        resolve_function(name)


@pytest.mark.parametrize(
    "function",
    [
        torch.ops.aten.relu.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.slice_scatter.default,
        torchvision.ops.deform_conv.torch.ops.torchvision.deform_conv2d,
        operator.getitem,
        torch.nn.functional.scaled_dot_product_attention,
    ],
)
def test_what_tracers_record_comes_back_by_its_name(function):
    assert resolve_function(function_name(function)) is function


def test_operators_that_blow_numbers_up_are_those_of_tensors():
    for name in ("pow", "ipow", "lshift", "irshift"):
        with pytest.raises(TypeError):
            resolve_function(f"operator.{name}")(10**9, 10**9)
    x = torch.tensor([1, 2, 3])
    assert torch.equal(resolve_function(function_name(operator.pow))(x, 2), x**2)
    assert torch.equal(resolve_function(function_name(operator.pow))(2, x), 2**x)
    assert torch.equal(resolve_function(function_name(operator.lshift))(x, 2), x << 2)


@pytest.mark.parametrize("name", ["__reduce__", "share_memory_", "numpy", "data_ptr", "nothing", 3])
def test_methods_that_leave_the_tensor_are_refused(name):
    assert not is_method(name)


def test_classes_are_layers_only():
    for name in ("torch.nn.modules.conv.Tensor", "os.PathLike", "timm.data.dataset.ImageDataset"):
        with pytest.raises(StoreError, match="expected a layer class"):
            resolve_class(name)


class Outer:
    class Inner:
        @classmethod
        def make(cls):
            return cls()


def test_code_is_found_by_its_path_or_has_none():
    path = code_path(Outer.Inner.make)
    assert path == f"{__name__}:Outer.Inner.make"
    assert isinstance(resolve_code(path, [path])(), Outer.Inner)

    def inside():
        """Stands in a function."""

    assert code_path(inside) is None
    for untrusted in ("os:system", path, None, {}):
        with pytest.raises(StoreError, match="not among what was said to be trusted"):
            resolve_code(untrusted, ["os.system"])
