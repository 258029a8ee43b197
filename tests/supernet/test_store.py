"""A supernet comes back from disk as it was; what doesn't fit is named."""

import json

import pytest
import torch

from tailorbird.errors import StoreError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.store import classes_of, load_supernet, save_supernet

SPACE = "cifar-compofa-mbv3-s2-w0.25"


@pytest.fixture
def stored(tmp_path):
    space = load_space(SPACE, resolutions=[32, 48])
    net = build_supernet(space, classes=7, dropout=0.2, generator=torch.Generator().manual_seed(3))
    save_supernet(net, tmp_path)
    return net, tmp_path


def test_comes_back_as_it_was(stored):
    net, folder = stored
    again = load_supernet(folder)
    assert not again.training
    assert classes_of(again) == 7
    assert again.architectures == net.architectures
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert [m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)] == [0.2]
    assert not list(folder.glob(".*.part"))


def change(**values):
    def apply(folder):
        record = json.loads((folder / "space.json").read_text()) | values
        (folder / "space.json").write_text(json.dumps(record))

    return apply


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "space.json").unlink(), "can't read"),
        (lambda f: (f / "space.json").write_text("[]"), "the file is damaged"),
        (change(classes="7"), "the file is damaged"),
        (change(note=1), "the file is damaged"),
        (change(space="ofa"), "space: expected one of"),
        (change(resolutions=[8]), "resolutions: expected whole numbers of pixels"),
        (change(dropout=1.5), "dropout: expected a probability"),
        (change(classes=5), "with 5 classes; 2 weights are missing, unexpected, misshaped"),
        (lambda f: (f / "weights.safetensors").unlink(), "No such file"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"torn"), "not a whole safetensors"),
    ],
)
def test_misfits_are_told(stored, damage, text):
    _, folder = stored
    damage(folder)
    with pytest.raises(StoreError) as caught:
        load_supernet(folder)
    assert text in str(caught.value)


def test_weights_that_are_no_numbers_are_not_loaded(stored):
    net, folder = stored
    with torch.no_grad():
        net.first_conv.conv.weight[0] = torch.nan
    save_supernet(net, folder)
    with pytest.raises(StoreError, match=r"not finite: first_conv\.conv\.weight;"):
        load_supernet(folder)


def test_a_space_of_absurdly_many_classes_is_told_unbuilt(stored):
    path = stored[1] / "space.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": 2**31}))
    with pytest.raises(StoreError, match=r"which has 2,147,483,648 weights or more: found"):
        load_supernet(path.parent)
