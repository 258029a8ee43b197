"""Hostile tables, damaged files and full disks: refused in words, and nothing is run."""

from __future__ import annotations

import copy
import errno
import json
import os

import numpy as np
import pytest
from torch import fx

from tailorbird.errors import StoreError
from tailorbird.files import write_bytes
from tailorbird.graph.serial import (
    from_spec,
    load_module,
    save_module,
    to_spec,
)

from .serial_nets import Awkward, CifarNet, conv_net


def spec_with(change) -> dict:
    spec = json.loads(json.dumps(to_spec(fx.symbolic_trace(CifarNet()))))
    change(spec["network"])
    return spec


def node(network, op: str) -> dict:
    return next(record for record in network["nodes"] if record["op"] == op)


def cyclic(network) -> None:
    args: list[object] = []
    args.append(args)
    node(network, "call_function")["args"] = args


def square(network, times: int) -> None:
    """The batch size, squared again and again."""
    image = network["nodes"][0]["name"]
    made = [{"op": "call_method", "name": "n0", "target": "size", "args": [{"node": image}, 0]}]
    for number in range(times):
        args = [{"node": f"n{number}"}] * 2
        made.append(
            {
                "op": "call_function",
                "name": f"n{number + 1}",
                "target": "operator.mul",
                "args": args,
            }
        )
    network["nodes"][1:1] = [record | {"kwargs": {}} for record in made]


def huge(network) -> None:
    network["children"]["head"]["arguments"].update(in_features=10**8, out_features=10**8)


HOSTILE = {
    "function": (lambda n: node(n, "call_function").update(target="os.system"), "os.system"),
    "load": (lambda n: node(n, "call_function").update(target="torch.load"), "torch.load"),
    "store": (
        lambda n: node(n, "call_function").update(target="tailorbird.files.write_bytes"),
        "write_bytes",
    ),
    "eval": (lambda n: node(n, "call_function").update(target="builtins.eval"), "builtins.eval"),
    "getattr": (
        lambda n: node(n, "call_function").update(
            target="builtins.getattr", args=[{"node": "x"}, "__class__"]
        ),
        "__class__",
    ),
    "method": (
        lambda n: node(n, "call_function").update(
            op="call_method", target="__reduce__", args=[{"node": "x"}]
        ),
        "__reduce__",
    ),
    "class": (
        lambda n: n["children"]["stem"].update({"class": "subprocess.Popen"}),
        "subprocess.Popen",
    ),
    "no layer": (
        lambda n: n["children"]["stem"].update({"class": "torch.nn.modules.conv.Tensor"}),
        "expected a layer class",
    ),
    "source in a placeholder": (
        lambda n: node(n, "placeholder").update(target="x=__import__('os')"),
        "isn't an identifier",
    ),
    "source in a keyword": (
        lambda n: node(n, "call_function").update(kwargs={"a=print()": 1}),
        "letters, digits and underscores",
    ),
    "source in a path": (
        lambda n: node(n, "call_module").update(target='stem", print("x")) or ("'),
        "letters, digits and underscores",
    ),
    "plumbing": (
        lambda n: n["children"]["stem"].update(
            kind="attributes", attributes={"_modules": None}, tensors={}, children={}
        ),
        "nn.Module's own",
    ),
    "cycle": (cyclic, "nested beyond all reason"),
    "later node": (
        lambda n: node(n, "call_function").update(args=[{"node": "output"}]),
        "before it is defined",
    ),
    "huge": (huge, "more than"),
    "huge shape": (
        lambda n: n["tensors"].update(w={"kind": "buffer", "shape": [2**30, 64], "dtype": "int8"}),
        "beyond all reason",
    ),
    "wrong shape": (
        lambda n: n["tensors"].update(w={"kind": "buffer", "shape": [-1], "dtype": "int8"}),
        "whole numbers",
    ),
    "no output": (lambda n: n["nodes"].pop(), "no output"),
    "wrong arguments": (
        lambda n: n["children"]["stem"].update(arguments={"kernel": 3}),
        "Conv2d",
    ),
    "nothing": (lambda n: n.clear(), "unknown kind"),
    "layers without end": (
        lambda n: n["children"]["stem"].update(
            {
                "class": "timm.models.mlp_mixer.MlpMixer",
                "arguments": {"num_blocks": 10**9},
            }
        ),
        "more than 3000 parts",
    ),
    "clones without end": (
        lambda n: n["children"]["stem"].update(
            {
                "class": "torch.nn.modules.transformer.Transformer",
                "arguments": {"d_model": 4, "nhead": 2, "num_encoder_layers": 10**9},
            }
        ),
        "clones layers",
    ),
    "numbers without end": (lambda n: square(n, 40), "numbers made of more than 16 operations"),
    "lists without end": (
        lambda n: node(n, "call_function").update(target="operator.mul", args=[[0], 10**12]),
        "expected numbers",
    ),
    "method of a module": (
        lambda n: n["children"]["stem"].update(
            kind="attributes",
            attributes={"train": {"function": "torch.relu"}},
            tensors={},
            children={},
        ),
        "nn.Module's own",
    ),
    "code as a class": (
        lambda n: n["children"]["stem"].update({"class": {"code": "os:system"}}),
        "os:system",
    ),
    "code as a function": (
        lambda n: node(n, "call_function").update(target={"code": "os:system"}),
        "os:system",
    ),
    "code in a value": (
        lambda n: node(n, "call_function").update(kwargs={"x": {"code": "os:system"}}),
        "os:system",
    ),
    "code in an object": (
        lambda n: node(n, "call_function").update(
            kwargs={"x": {"object": [{"code": "os:_Environ"}, {"dict": []}]}}
        ),
        "os:_Environ",
    ),
    "a tensor elsewhere": (
        lambda n: n["children"]["stem"].update(
            kind="attributes", attributes={"a": {"owned": "x"}}, tensors={}, children={}
        ),
        "not in the module",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_are_refused(name):
    change, text = HOSTILE[name]
    with pytest.raises(StoreError, match=text):
        from_spec(spec_with(change))


def test_other_formats_are_refused():
    with pytest.raises(StoreError, match="expected a stored network"):
        from_spec({"nodes": []})
    with pytest.raises(StoreError, match="upgrade Tailorbird"):
        from_spec(to_spec(conv_net()) | {"version": 99})


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of all parts of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, (dict, list)):
            found.extend(places(item, (*path, key)))
    return found


def test_random_damage_is_refused_or_harmless():
    rng = np.random.default_rng(0)
    whole = json.loads(json.dumps(to_spec(fx.symbolic_trace(Awkward()))))
    every = places(whole)
    junk = [
        None,
        -1,
        2**70,
        1.5,
        "x",
        "__class__",
        "torch.load",
        [],
        {},
        [[1]],
        {"node": "x"},
        True,
    ]
    refused = 0
    for _ in range(150):
        spec = copy.deepcopy(whole)
        *path, last = every[rng.integers(len(every))]
        holder = spec
        for key in path:
            holder = holder[key]
        holder[last] = junk[rng.integers(len(junk))]
        try:
            from_spec(spec)
        except StoreError:
            refused += 1
    assert refused > 75


# ---------------------------------------------------------------- files


def test_half_written_tampered_and_missing_files_are_found(tmp_path):
    save_module(conv_net(), tmp_path, "net", {"a": 1})
    structure, weights = tmp_path / "net.json", tmp_path / "net.safetensors"
    good = structure.read_bytes(), weights.read_bytes()

    def expect(text: str) -> None:
        with pytest.raises(StoreError, match=text):
            load_module(tmp_path, "net")
        structure.write_bytes(good[0])
        weights.write_bytes(good[1])

    weights.write_bytes(good[1][:-1])
    expect("net.safetensors: doesn't match the checksum")
    flipped = bytearray(good[1])
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    expect("net.safetensors: doesn't match the checksum")
    structure.write_bytes(good[0][:-5])
    expect("net.json: not JSON")
    structure.write_bytes(good[0].replace(b'"a":1', b'"a":2'))
    expect("net.json: changed since it was written")
    structure.write_bytes(b"[]")
    expect("net.json: not a stored network")
    structure.unlink()
    expect("net.json: missing")
    weights.unlink()
    expect("net.safetensors: missing")
    assert load_module(tmp_path, "net")[1] == {"a": 1}


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.bin", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"can't write .*a\.bin: No space left on device"):
        write_bytes(tmp_path / "a.bin", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_names_cannot_leave_the_folder(tmp_path):
    with pytest.raises(StoreError, match="use letters"):
        save_module(conv_net(), tmp_path, "../net", {})
    with pytest.raises(StoreError, match="isn't plain JSON"):
        save_module(conv_net(), tmp_path, "net", {"bad": object()})


def test_what_the_first_version_wrote_is_read():
    spec = to_spec(conv_net())
    del spec["code"]
    assert from_spec(spec | {"version": 1})
