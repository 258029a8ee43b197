"""Which weights of a file are taken, and what can't be weights."""

import argparse
import zipfile

import pytest
import torch
from timm import create_model  # noqa: F401  # by which a factory is named
from torch import nn

from tailorbird.checkpoints import load_weights, read_weights
from tailorbird.errors import ConfigError, StoreError
from tailorbird.factories import call_factory
from tailorbird.models import load_model
from tailorbird.pickled import absurdity


def small():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))


PLAIN = small().state_dict()
EMA = {k: v * 0.5 if v.is_floating_point() else v for k, v in PLAIN.items()}


def under(prefix, weights=PLAIN):
    return {prefix + name: value for name, value in weights.items()}


def loaded(tmp_path, content, key=None):
    torch.save(content, tmp_path / "w.pth")
    net = small()
    return net.state_dict(), load_weights(net, tmp_path / "w.pth", key)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": PLAIN, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, PLAIN),
        ({"state_dict": PLAIN, "state_dict_ema": under("module.", EMA), "epoch": 4}, EMA),
        ({"model": PLAIN, "model_ema": EMA, "step": torch.tensor(3)}, EMA),
        ({"params_ema": EMA, "params": PLAIN}, EMA),
        ({"ema": {"module": EMA}, "model": PLAIN}, EMA),
        ({"state_dict": PLAIN, "args": argparse.Namespace(lr=1)}, PLAIN),
        (torch.optim.swa_utils.AveragedModel(small()).state_dict(), None),
        (under("module._orig_mod."), PLAIN),
        ({"state_dict": under("backbone.")}, PLAIN),
        ({"state_dict": {**under("model."), "criterion.weight": torch.ones(4)}}, PLAIN),
        ({**PLAIN, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, PLAIN),
        ({k: v.half() if v.is_floating_point() else v for k, v in PLAIN.items()}, PLAIN),
    ],
)
def test_what_people_store_is_loaded(tmp_path, content, expected):
    found, _ = loaded(tmp_path, content)
    for name, value in (expected or {}).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-3)


def test_which_set_was_taken_is_said_and_can_be_chosen(tmp_path):
    both = {"state_dict": PLAIN, "state_dict_ema": EMA}
    found, notes = loaded(tmp_path, both)
    assert torch.equal(found["0.weight"], EMA["0.weight"])
    [note] = notes
    assert "'state_dict_ema' was taken; it also holds state_dict (checkpoint_key chooses)" in note
    found, _ = loaded(tmp_path, both, "state_dict")
    assert torch.equal(found["0.weight"], PLAIN["0.weight"])
    with pytest.raises(StoreError, match="no weights under 'model'; it has state_dict, state_"):
        loaded(tmp_path, both, "model")


def test_sets_that_nothing_tells_apart_have_to_be_named(tmp_path):
    gan = {"generator": PLAIN, "discriminator": EMA}
    with pytest.raises(StoreError, match="several sets of weights: generator, discriminator; name"):
        loaded(tmp_path, gan)
    assert torch.equal(loaded(tmp_path, gan, "generator")[0]["0.weight"], PLAIN["0.weight"])


def test_what_was_left_out_and_converted_is_said(tmp_path):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in under("net.").items()}
    found, notes = loaded(tmp_path, {**half, "loss.weight": torch.ones(1)})
    assert found["0.weight"].dtype == torch.float32
    assert "left out beside the network: loss.weight" in notes[0]
    assert "bfloat16 weights were brought to float32" in notes[1]


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_become_float32_which_is_said(tmp_path, kind):
    narrow = {k: v.to(kind) if v.is_floating_point() else v for k, v in PLAIN.items()}
    found, notes = loaded(tmp_path, narrow)
    assert torch.equal(found["0.weight"], PLAIN["0.weight"].to(kind).float())
    assert f"{str(kind)[6:]} weights were brought to float32" in notes[0]


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_orig_mod.module"])
def test_names_of_wrapped_parts_are_found(tmp_path, wrapper):
    inner = {f"0.{wrapper}.{k[2:]}" if k[0] == "0" else k: v for k, v in PLAIN.items()}
    assert torch.equal(loaded(tmp_path, inner)[0]["0.weight"], PLAIN["0.weight"])
    outer = {f"module.{k}": v for k, v in inner.items()}
    assert torch.equal(loaded(tmp_path, outer)[0]["0.weight"], PLAIN["0.weight"])


def archive(path, instructions, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as made:
        made.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
        made.writestr("archive/version", "3\n")


SHARED = b")q\x00" + b"".join(
    b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60)
)
ZEROS = b"cbuiltins\nbytearray\n\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85R"


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        (ZEROS, "a bytearray, which may be of any size"),
        (SHARED + b"}h\x3cK\x01s", "a value of more than 1,000,000 parts"),
    ],
    ids=["zeros", "hash"],
)
@pytest.mark.parametrize("old", [False, True])
def test_files_that_ask_for_the_absurd_are_refused_unread(tmp_path, instructions, words, old):
    path = tmp_path / "w.pth"
    if old:
        path.write_bytes(b"\x80\x02K\x01.\x80\x02" + instructions + b".")
    else:
        archive(path, instructions)
    with pytest.raises(StoreError, match=f"refused, it holds {words}; save"):
        read_weights(path)


def test_files_that_unpack_to_the_absurd_are_refused_unread(tmp_path):
    archive(tmp_path / "w.pth", b"]" * 10**6, zipfile.ZIP_DEFLATED)
    with pytest.raises(StoreError, match=r"refused, it holds [\d,]+ bytes that unpack to 1,000,"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("old", [False, True])
def test_what_training_leaves_is_not_absurd(tmp_path, old):
    net = small()
    rest = torch.optim.Adam(net.parameters())
    net(torch.ones(3, 2)).sum().backward()
    rest.step()
    state = {"state_dict": net.state_dict(), "optimizer": rest.state_dict(), "epoch": 3}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    assert absurdity(tmp_path / "w.pth") == ""


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.empty(2, device="meta"), "without values"),
        (lambda: torch.zeros(1).expand(10**12), "expanded beyond what is stored"),
    ],
    ids=["sparse", "quantised", "meta", "expanded"],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, about quantisation's future
def test_tensors_that_are_no_plain_ones_are_refused(tmp_path, tensor, words):
    torch.save({"0.weight": tensor()}, tmp_path / "w.pth")
    with pytest.raises(StoreError, match=rf"1 tensors can't be used: 0\.weight \({words}\)"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")  # torch's own, about scripts' future
def test_torchscript_says_what_to_save(tmp_path):
    torch.jit.script(small()).save(tmp_path / "w.pt")
    with pytest.raises(StoreError, match="TorchScript archive, which holds code; save") as caught:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(caught.value)


def test_an_archive_of_something_else_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(StoreError, match="neither safetensors nor a whole torch file"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "w.pth"},
        {"pretrained_cfg_overlay": {"file": "w.pth"}},
        {"pretrained": True, "pretrained_cfg": {"file": "w.pth"}},
        {"backbone": [{"more": {"pretrained_cfg": {"file": "w.pth"}}}]},
        {"some": {"file": "w.pth"}},
    ],
    ids=["checkpoint_path", "overlay", "cfg", "nested", "file"],
)
def test_timm_unpickles_no_file(arguments):
    with pytest.raises(ConfigError, match=r"timm may unpickle the file .*give it as checkpoint"):
        load_model("timm:resnet10t", arguments=arguments)


SAME = ("timm.models:create_model", "timm.models.resnet:resnet10t", f"{__name__}:create_model")


@pytest.mark.parametrize("source", SAME)
@pytest.mark.parametrize("make", [call_factory, lambda s, a: load_model(s, arguments=a)])
def test_timm_unpickles_no_file_by_another_name(source, make):
    arguments = {"model_name": "resnet10t", "pretrained_cfg_overlay": {"file": "w.pth"}}
    with pytest.raises(ConfigError, match="pretrained_cfg_overlay: timm may unpickle the file"):
        make(source, arguments)
    with pytest.raises(ConfigError, match="model_name: timm may unpickle the file"):
        make(source, {"model_name": "local-dir:somewhere"})
    deep = {}
    for _ in range(99):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="nested too deeply"):
        make(source, deep)


def test_timm_unpickles_no_folder():
    with pytest.raises(ConfigError, match="give its weights as checkpoint"):
        load_model("timm:local-dir:somewhere")
