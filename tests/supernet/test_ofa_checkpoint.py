"""Official weights: all spellings of their names, and every fault told at once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tailorbird.checkpoints import read_tensors
from tailorbird.errors import StoreError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.ofa_checkpoint import load_official
from tailorbird.train.checkpoint import digest


def supernet(seed=0, name="ofa-mbv3-w1.0", classes=None):
    space = load_space(name, resolutions=[32])
    return build_supernet(space, classes=classes, generator=torch.Generator().manual_seed(seed))


def older(name):
    """A name as the first once-for-all files spell it."""
    name = name.replace(".conv.inverted", ".mobile_inverted_conv.inverted")
    name = name.replace(".conv.depth", ".mobile_inverted_conv.depth")
    name = name.replace(".conv.point", ".mobile_inverted_conv.point")
    return name.replace(".bn.bn.", ".bn.").replace(".conv.conv.weight", ".conv.weight")


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "ofa-proxyless-w1.3", "ofa-resnet50d"])
def test_older_spellings_are_understood(name):
    theirs, ours = supernet(1, name), supernet(0, name)
    spelled = {f"module.{older(key)}": value for key, value in theirs.state_dict().items()}
    assert len(spelled) == len(theirs.state_dict())
    assert digest(theirs) != digest(ours)
    load_official(ours, spelled)
    assert digest(theirs) == digest(ours)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_files(tmp_path, kind):
    theirs, ours = supernet(1, "compofa-mbv3-w1.0"), supernet(0, "compofa-mbv3-w1.0")
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(theirs.state_dict(), path)
    else:
        tensors = theirs.state_dict()
        torch.save({"state_dict": tensors} if kind == "wrapped" else tensors, path)
    load_official(ours, read_tensors(path))
    assert digest(theirs) == digest(ours)


def test_counters_may_be_missing():
    tensors = {k: v for k, v in supernet(1).state_dict().items() if "num_batches" not in k}
    ours = supernet(0)
    load_official(ours, tensors)
    assert digest(ours) == digest(supernet(1))


def test_all_faults_at_once_and_nothing_is_copied():
    net = supernet(0)
    before = digest(net)
    tensors = supernet(1).state_dict()
    del tensors["blocks.1.conv.depth_conv.conv.7to5_matrix"]
    tensors["blocks.99.conv.weight"] = torch.zeros(1)
    tensors["blocks.2.conv.point_linear.conv.weight"] = torch.zeros(1)  # and as conv.conv
    tensors["first_conv.conv.weight"] = torch.zeros(24, 3, 3, 3)
    tensors["classifier.linear.bias"] = torch.full((1000,), float("nan"))
    with pytest.raises(StoreError) as told:
        load_official(net, tensors)
    text = str(told.value)
    assert "does not fit a supernet of ofa-mbv3-w1.0 with 1000 classes" in text
    assert "1 missing: blocks.1.conv.depth_conv.conv.7to5_matrix" in text
    assert "1 unexpected: blocks.99.conv.weight" in text
    assert "1 given more than once: blocks.2.conv.point_linear.conv" in text
    assert "first_conv.conv.weight (24, 3, 3, 3) instead of (16, 3, 3, 3)" in text
    assert "1 not finite: classifier.linear.bias" in text
    assert digest(net) == before


def test_a_checkpoint_of_another_space_is_refused():
    with pytest.raises(StoreError, match="checkpoint does not fit") as told:
        load_official(supernet(0), supernet(0, "ofa-proxyless-w1.3").state_dict())
    assert "se.fc.reduce.weight" in str(told.value)
    assert "more" in str(told.value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"state_dict": supernet(0, "compofa-mbv3-w1.0"), "made": print}, path)
    with pytest.raises(StoreError, match="would need unpickling"):
        read_tensors(path)
