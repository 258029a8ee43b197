import collections
import copy
import errno
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tailorbird.errors import ExportError, StoreError
from tailorbird.export import onnx as exporting
from tailorbird.export.onnx import export_many, export_onnx, relabel


class Residual(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.act = nn.Hardswish()
        self.skip = nn.Conv2d(c_in, c_out, 1, stride) if stride > 1 else nn.Identity()
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + self.skip(x))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        n, t, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + y.transpose(1, 2).reshape(n, t, c)
        return x + self.mlp(x)


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x):
        x = nn.functional.silu(self.conv(x))
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


def zoo():
    shared = Residual(8, 8)
    return {
        "residual": (shared, (8, 9, 9)),
        "strided": (Residual(8, 16, 2), (8, 9, 9)),
        "same-object": (shared, (8, 5, 5)),
        "identity": (nn.Identity(), (8, 9, 9)),
        "dropout": (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 4, 1)), (4, 3, 3)),
        "attention": (Attention(8, 2), (6, 8)),
        "squeeze": (SqueezeExcite(8), (8, 7, 7)),
        "traced": (torch.fx.symbolic_trace(Residual(4, 4)), (4, 6, 6)),
        "head": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), (8, 4, 4)),
        "identity-too": (nn.Identity(), (8, 9, 9)),
    }


def run(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["image"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    return session.run(None, {"image": image.numpy()})[0]


def optimised_operators(path, folder):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimised.onnx").graph.node
    return collections.Counter(f"{node.domain}:{node.op_type}" for node in nodes)


HEAVY = (":Conv", "com.microsoft:FusedConv", ":Gemm", "com.microsoft:FusedGemm", ":MatMul")


def test_many_equal_their_networks_and_single_exports(tmp_path):
    zoo_ = zoo()
    paths = export_many(list(zoo_.values()), tmp_path / "new" / "many", list(zoo_))
    assert [path.stem for path in paths] == list(zoo_)
    for path, (name, (module, shape)) in zip(paths, zoo_.items(), strict=True):
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = copy.deepcopy(module).eval()(image).numpy()
        np.testing.assert_allclose(run(path, image), expected, atol=1e-5, err_msg=name)
        single = export_onnx(module, shape, tmp_path / "single.onnx")
        ours, theirs = (optimised_operators(file, tmp_path) for file in (path, single))
        for product in HEAVY:
            assert ours[product] == theirs[product], (name, product)
        weights, expected = (
            sum(np.prod(t.dims) for t in onnx.load(file).graph.initializer if t.data_type == 1)
            for file in (path, single)
        )
        assert abs(weights - expected) <= 0.01 * expected, name
    assert {path.suffix for path in paths[0].parent.iterdir()} == {".onnx"}


def test_many_without_the_tracing_exporter(tmp_path):
    zoo_ = dict(list(zoo().items())[:3])
    for path, (module, shape) in zip(
        export_many(list(zoo_.values()), tmp_path, list(zoo_), tracing=False),
        zoo_.values(),
        strict=True,
    ):
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = copy.deepcopy(module).eval()(image).numpy()
        np.testing.assert_allclose(run(path, image), expected, atol=1e-5)


def test_chunks_are_cut_by_number_and_by_weight():
    light, heavy = nn.Linear(2, 2, bias=False), nn.Linear(5, 5, bias=False)
    modules = [light] * 4 + [heavy, heavy, light]
    chunks = list(exporting._chunks(modules, most=3, limit=4 * 25))
    assert chunks == [[0, 1, 2], [3], [4], [5], [6]]


class Spectral(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_many_names_every_fault_and_writes_the_rest(tmp_path):
    good = nn.Conv2d(2, 2, 1)
    modules = [(good, (2, 3, 3)), (Spectral(), (4, 4)), (good, (2, 4, 4)), (good, (3, 4, 4))]
    with pytest.raises(ExportError, match="2 of 4 modules") as error:
        export_many(modules, tmp_path, ["a", "b", "c", "d"])
    assert "b.onnx: module '' uses aten._linalg_svd, which has no ONNX form" in str(error.value)
    assert "d.onnx: the network does not run on an input of shape (1, 3, 4, 4)" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "c.onnx"]


@pytest.mark.parametrize(
    ("names", "word"),
    [(["a"], "one name per module"), (["a", "a"], "distinct"), (["a", "x/b"], "without folders")],
)
def test_many_refuses_bad_names(tmp_path, names, word):
    with pytest.raises(ExportError, match=word):
        export_many([(nn.Identity(), (1,))] * 2, tmp_path, names)


def test_argument_is_left_alone_and_file_says_no_paths(tmp_path, capfd):
    net = nn.Sequential(Residual(3, 4, 2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5))
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    path = export_onnx(net, (3, 8, 8), tmp_path / "deep" / "m.onnx", metadata={"classes": "a,b"})
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props} == {"classes": "a,b"}
    assert b".py" not in path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]
    assert capfd.readouterr() == ("", "")


def test_dynamic_batch_and_opset(tmp_path):
    net = nn.Sequential(Attention(8, 2), nn.Flatten(), nn.Linear(48, 3))
    path = export_onnx(net, (6, 8), tmp_path / "m.onnx", dynamic_batch=True, opset=18)
    model = onnx.load(path)
    assert [o.version for o in model.opset_import if not o.domain] == [18]
    first = [
        v.type.tensor_type.shape.dim[0].dim_param for v in (*model.graph.input, *model.graph.output)
    ]
    assert first == ["batch", "batch"]
    for batch in (1, 5):
        image = torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            np.testing.assert_allclose(run(path, image), net.eval()(image), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (nn.Sequential(nn.Identity(), Spectral()), (4, 4), ["module '1' uses aten._linalg_svd"]),
        (nn.Sequential(nn.Identity(), Branching()), (4,), ["module '1' can't be traced"]),
        (nn.Linear(4, 2), (5,), ["does not run on an input of shape (1, 5)", "give the input"]),
        (nn.LSTM(4, 2), (3, 4), ["return one tensor, got tuple", "wrap it"]),
    ],
)
def test_what_can_not_be_exported_is_named(tmp_path, net, shape, words):
    with pytest.raises(ExportError) as error:
        export_onnx(net, shape, tmp_path / "m.onnx")
    assert all(word in str(error.value) for word in words), error.value
    assert list(tmp_path.iterdir()) == []


def test_an_opset_out_of_reach_is_refused(tmp_path):
    with pytest.raises(ExportError, match="opset"):
        export_onnx(nn.Linear(4, 2), (4,), tmp_path / "m.onnx", opset=999)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = export_onnx(nn.Linear(4, 2), (4,), tmp_path / "m.onnx")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"can't write .*m\.onnx: No space left.*free space"):
        export_onnx(nn.Linear(4, 3), (4,), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match=r"can't write .*m\.onnx"):
        export_onnx(nn.Linear(4, 2), (4,), tmp_path / "runs" / "m.onnx")


def test_only_what_is_shipped_waits_for_the_disk(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(os, "fsync", waits.append)
    export_many([(nn.Linear(4, 2), (4,))], tmp_path, ["a"])
    assert waits == []
    export_onnx(nn.Linear(4, 2), (4,), tmp_path / "m.onnx")
    assert waits


def test_weights_too_large_for_one_file_go_beside_it(tmp_path):
    net = nn.Linear(40, 20).eval()
    path = export_onnx(net, (40,), tmp_path / "m.onnx", single_file_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 1000
    image = torch.ones(1, 40)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, image), net(image), atol=1e-5)


def test_a_copy_with_other_metadata_also_of_weights_beside_the_file(tmp_path):
    net = nn.Linear(400, 8)
    one = export_onnx(net, (400,), tmp_path / "one.onnx", metadata={"target": "a", "more": "b"})
    two = relabel(one, tmp_path / "there" / "two.onnx", {"target": "c"})
    beside = export_onnx(net, (400,), tmp_path / "beside.onnx", single_file_bytes=5_000)
    assert beside.with_name("beside.onnx.data").exists()
    there = tmp_path / "there" / "three.onnx"
    three = relabel(beside, there, {"target": "d"}, single_file_bytes=5_000)
    assert three.with_name("three.onnx.data").exists()
    images = torch.randn(1, 400)
    for path, target in ((two, "c"), (three, "d")):
        model = onnx.load(path)
        assert [(p.key, p.value) for p in model.metadata_props] == [("target", target)]
        [output] = onnxruntime.InferenceSession(str(path)).run(None, {"image": images.numpy()})
        np.testing.assert_allclose(output, net(images).detach(), atol=1e-5)


@pytest.mark.parametrize("content", [None, b"no protobuf at all"])
def test_what_can_not_be_copied_is_named(tmp_path, content):
    source = tmp_path / "source.onnx"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(StoreError, match=r"source\.onnx can't be read"):
        relabel(source, tmp_path / "copy.onnx", {})
    assert not (tmp_path / "copy.onnx").exists()
