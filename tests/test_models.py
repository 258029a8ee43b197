import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tailorbird.errors import ConfigError, StoreError
from tailorbird.factories import resolve_factory
from tailorbird.models import load_model


def small(num_classes=4, width=3):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes))


def not_a_network():
    return 3


HERE = f"{__name__}:small"


def test_names_lead_to_networks_in_eval_mode():
    model = load_model("torchvision:mobilenet_v3_small", num_classes=7)
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert load_model("timm:resnet10t", num_classes=3).get_classifier().out_features == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:resnet_18", "near matches: .*resnet18"),
        ("torchvision:resnet81", "near matches: .*resnet18"),
        ("tim:resnet18", "did you mean timm:resnet18"),
        ("resnet18", "expected timm:NAME"),
        ("no_such_package:make", "PYTHONPATH"),
        ("torch.nn:Linaer", "near matches: .*Linear"),
        ("torch:float32", "expected a class or function"),
        (f"{__name__}:not_a_network", "expected a torch.nn.Module, got int"),
    ],
)
def test_wrong_names_say_the_way_out(source, words):
    with pytest.raises(ConfigError, match=words):
        load_model(source)


def test_wrong_arguments_name_the_model_and_the_cause():
    with pytest.raises(ConfigError, match=r"building it with .*'widht': 3.*TypeError"):
        load_model(HERE, arguments={"widht": 3})


def test_arguments_reach_the_factory_and_are_not_changed():
    arguments = {"width": 5}
    model = load_model(HERE, arguments=arguments, num_classes=9)
    assert (model[0].out_features, model[2].out_features) == (5, 9)
    assert arguments == {"width": 5}
    assert resolve_factory(HERE)().__class__ is nn.Sequential


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_checkpoint_fits_whatever_it_is_wrapped_in(tmp_path, prefix, wrapper):
    weights = small().state_dict()
    named = {prefix + k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "w.pt"
    torch.save(named if wrapper is None else {wrapper: named, "epoch": 3}, path)
    model = load_model(HERE, checkpoint=path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_safetensors_is_known_by_content(tmp_path):
    weights = small().state_dict()
    save_file(weights, tmp_path / "weights.bin")
    model = load_model(HERE, checkpoint=tmp_path / "weights.bin")
    assert torch.equal(model[0].weight, weights["0.weight"])


def test_all_misfits_are_listed_at_once(tmp_path):
    weights = small().state_dict()
    weights["stray"] = weights.pop("0.bias")
    weights["2.weight"] = torch.zeros(9, 3)
    weights["1.weight"] = torch.full((3,), torch.nan)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(StoreError) as caught:
        load_model(HERE, checkpoint=tmp_path / "w.safetensors")
    text = str(caught.value)
    for words in (
        "1 missing: 0.bias",
        "1 unexpected: stray",
        "1 misshaped: 2.weight (9, 3) instead of (4, 3)",
        "1 not finite: 1.weight",
    ):
        assert words in text


def test_another_head_points_at_num_classes(tmp_path):
    save_file(small(num_classes=10).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(StoreError, match=r"2 misshaped(.|\n)*set num_classes"):
        load_model(HERE, checkpoint=tmp_path / "w.safetensors")
    assert load_model(HERE, checkpoint=tmp_path / "w.safetensors", num_classes=10)


class Marker:
    ran = False

    def __reduce__(self):
        return (setattr, (Marker, "ran", True))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    torch.save({"state_dict": small().state_dict(), "extra": Marker()}, tmp_path / "w.pt")
    with pytest.raises(StoreError, match=r"would need unpickling.*refused.*save_file"):
        load_model(HERE, checkpoint=tmp_path / "w.pt")
    torch.save(small(), tmp_path / "whole.pt")
    with pytest.raises(StoreError, match="would need unpickling"):
        load_model(HERE, checkpoint=tmp_path / "whole.pt")
    assert not Marker.ran


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
        ("w.safetensors", b"", "not a whole safetensors file"),
        ("w.pt", b"", "neither safetensors nor a whole torch file|would need unpickling"),
        ("w.pt", b"hello there", "neither safetensors nor a whole torch file|unpickling"),
    ],
)
def test_broken_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=words):
        load_model(HERE, checkpoint=tmp_path / name)
    with pytest.raises(StoreError, match="no such file"):
        load_model(HERE, checkpoint=tmp_path / "absent.pt")


def test_what_is_not_named_tensors_is_refused(tmp_path):
    torch.save({"weights": 3}, tmp_path / "a.pt")
    with pytest.raises(StoreError, match="expected named tensors, got a dictionary of weights"):
        load_model(HERE, checkpoint=tmp_path / "a.pt")
    torch.save([torch.zeros(1)], tmp_path / "b.pt")
    with pytest.raises(StoreError, match="expected named tensors, got list"):
        load_model(HERE, checkpoint=tmp_path / "b.pt")
