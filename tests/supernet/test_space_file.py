"""A user's own space: read, checked, bounded, stored with what is trained in it."""

import copy
import json

import numpy as np
import pytest
import torch

from tailorbird.errors import SpaceError, StoreError
from tailorbird.supernet import architecture
from tailorbird.supernet.architecture import SPACES, define_space, load_space
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.space_file import check_definition, check_network
from tailorbird.supernet.store import load_supernet, save_supernet
from tailorbird.supernet.train import SupernetRecipe, train_supernet
from tests.supernet.tiny import stripes


def definition(name="cifar-mbv3-s2-w0.25"):
    return json.loads((architecture._FOLDER / f"{name}.json").read_text())


def faults(data):
    with pytest.raises(SpaceError) as caught:
        define_space("mine", data)
    return str(caught.value).split("\n  - ")


def small():
    """One stage of two blocks, in a user's words."""
    return {
        "resolutions": [32],
        "genes": {"d1": [1, 2]},
        "official": {"e": "expand", "d": ["d1"]},
        "layers": [
            {"name": "stem", "kind": "conv", "out_channels": 8, "kernel": 3, "stride": 4},
            {
                **{"stage": 1, "name": "blocks", "first": 0, "blocks": 2, "kind": "mbconv"},
                "depth": {"gene": "d1", "values": [1, 2]},
                "out_channels": 8,
                "expand": {"each": "e", "values": [2, 3]},
            },
            {"name": "pool", "kind": "global_avg_pool"},
            {"name": "classifier", "kind": "linear", "out_channels": 2},
        ],
    }


def write(folder, data, name="mine.json"):
    path = folder / name
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", SPACES)
def test_the_package_describes_its_own_spaces_in_this_form(name):
    check_definition(name, definition(name))


@pytest.mark.parametrize(
    "name", ["cifar-resnet50d-w0.25", "cifar-vit-tiny", "cifar-proxyless-w0.25"]
)
def test_networks_of_the_package_pass_as_a_users(name):
    check_network(load_space(name))
    own = define_space("mine", definition(name))
    assert own.slots == load_space(name).slots
    assert own.space.choices == load_space(name).space.choices


def test_a_file_is_a_space(tmp_path):
    path = write(tmp_path, small())
    for given in (path, str(path)):
        space = load_space(given, resolutions=[48, 32])
        assert (space.name, space.space.size) == ("mine", 2 * (2 + 4))
        assert space.architectures(np.zeros((1, 4), dtype=np.int64)) == [
            {"e": [2, 2], "d": [1], "r": 32}
        ]
    assert space.with_resolutions([64]).space.choices[0].values == (64,)
    assert load_space("cifar-vit-tiny").with_resolutions([64]).space.choices[0].values == (64,)


def test_what_was_trained_in_it_needs_the_file_no_more(tmp_path):
    path = write(tmp_path, small())
    generator = torch.Generator().manual_seed(0)
    net = build_supernet(load_space(path), classes=5, generator=generator)
    path.unlink()
    save_supernet(net, tmp_path / "net")
    again = load_supernet(tmp_path / "net")
    assert again.architectures.slots == net.architectures.slots
    assert again.architectures.definition == small()
    record = json.loads((tmp_path / "net" / "space.json").read_text())
    record["definition"]["layers"].pop()
    (tmp_path / "net" / "space.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="expected one of kind linear, the classifier"):
        load_supernet(tmp_path / "net")


def test_a_run_in_a_space_that_was_edited_is_refused(tmp_path):
    edited = small()
    edited["layers"][0]["activation"] = "relu"  # no weight is another for it
    scheme = DepS(epochs=1, delay=0, ramp_epochs=0)
    options = {"seed": 0, "recipe": SupernetRecipe(batch_size=18), "folder": tmp_path}

    def train(data):
        net = build_supernet(
            define_space("mine", data), classes=2, generator=torch.Generator().manual_seed(0)
        )
        return train_supernet(net, stripes(), scheme, **options)

    train(small())
    with pytest.raises(StoreError, match=r"space\.definition: "):
        train(edited)
    assert train(small()).history[-1].step == 2


def test_all_faults_are_told_at_once():
    data = small()
    data["resolution"] = [32]
    data["resolutions"] = [32, 16]
    data["genes"]["d2"] = [2, 1]
    data["layers"][0] |= {"kernel": 4, "colour": "red"}
    data["layers"][1]["depth"] = {"gene": "d9", "values": [1, 2]}
    data["layers"][1]["expand"]["values"] = [2, "wide"]
    data["layers"][2:] = [{"name": "classifier", "kind": "lineal", "out_channels": 2}, 7]
    heading, *lines = faults(data)
    assert heading == f"space 'mine': {len(lines)} faults:"
    assert lines == [
        "resolution: unknown; did you mean resolutions?",
        "resolutions: expected a list of 1 to 64 numbers in ascending order, got [32, 16]",
        "genes.d2: expected a list of 1 to 64 numbers in ascending order, got [2, 1]",
        "layers: expected one of kind linear, the classifier, as the last",
        "layers: global_avg_pool, or token_mean of tokens, is missing",
        "layers[0].colour: unknown; expected name, kind, stride, stage, first, blocks, depth, "
        "out_channels, kernel, activation, residual, norm",
        "layers[0].kernel: expected odd whole numbers of 1 to 31, got 4",
        "layers[1].depth.gene: expected one of d1, got 'd9'",
        "layers[1].expand: expected a list of 1 to 64 numbers in ascending order, got [2, 'wide']",
        "layers[2].kind: expected one of conv, mbconv, bottleneck, max_pool, global_avg_pool, "
        "patch_embed, transformer_block, token_mean, linear, got 'lineal'",
        "layers[3]: expected an object, got 7",
    ]


def change(place, value):
    """The small space with one thing in it exchanged, or removed for ``None``."""
    data = copy.deepcopy(small())
    *parents, last = place
    inside = data
    for key in parents:
        inside = inside[key]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return data


STAGE = ("layers", 1)


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (("resolutions",), [16], "resolutions: expected whole numbers of pixels from 32 to 4,096"),
        (("resolutions",), ["32"], "resolutions: expected a list of 1 to 64 numbers"),
        (("genes",), [1], "genes: expected an object, got [1]"),
        (("layers",), {}, "layers: expected a list, got {}"),
        (("official",), {"d": ["d1"]}, "official: e1_1, e1_2 missing, every gene has to be under"),
        (("official", "e"), "kernels", "official.e: expected an attribute that all stages have"),
        (("official", "r"), ["d1"], "official.r: the resolution is always there"),
        (("norm_epsilon",), float("nan"), "norm_epsilon: expected a number above 0, at most 1"),
        (("layers", 0, "out_channels"), None, "layers[0].out_channels: missing"),
        (("layers", 0, "out_channels"), 10**9, "layers[0].out_channels: expected whole numbers"),
        (("layers", 0, "name"), "../x", "layers[0].name: expected lower-case words"),
        (("layers", 0, "name"), "forward", "layers: 'forward' can't be a layer's name"),
        (("layers", 0, "name"), "blocks.1", "layers[1]: the name blocks.1 is there twice"),
        (("layers", 0, "activation"), "tanh", "layers[0].activation: expected one of none, relu"),
        (("layers", 0, "residual"), True, "layers: no network can be built and run: "),
        ((*STAGE, "first"), None, "layers[1]: several blocks need stage and first"),
        ((*STAGE, "depth", "values"), [1, 1], "layers[1].depth: expected numbers of blocks up to"),
        ((*STAGE, "depth", "values"), [1, 2, 3], "layers[1].depth: expected 2 values, as many as"),
        ((*STAGE, "depth", "values"), [0, 2], None),
        ((*STAGE, "blocks"), 10**9, "layers[1].blocks: expected a whole number of 1 to 64"),
        ((*STAGE, "out_channels"), 16, None),
        ((*STAGE, "se"), 1, "layers[1].se: expected true or false, got 1"),
        ((*STAGE, "expand", "each"), "d", None),
    ],
)
def test_a_fault_is_told_with_its_place(place, value, text):
    data = change(place, value)
    if text is None:  # unusual, and fine
        define_space("mine", data)
    else:
        assert any(text in line for line in faults(data)), faults(data)


def test_a_block_that_may_be_absent_has_to_keep_width_and_size():
    data = change((*STAGE, "depth", "values"), [0, 2])
    data["layers"][1]["stride"] = 2
    [told] = faults(data)
    assert told.startswith("space 'mine': layers: blocks.0 may be absent")


def test_sizes_are_bounded():
    many = small()
    many["genes"] |= {name: list(range(1, 61)) for name in ("w1", "w2")}
    many["layers"][1] |= {"blocks": 64, "depth": {"gene": "d1", "values": [1, 64]}}
    for key, gene in (("out_channels", "w1"), ("expand", "w2")):
        many["layers"][1][key] = {"gene": gene, "values": list(range(8, 68))}
    many["layers"][1]["expand"]["values"] = list(range(1, 61))
    assert any("shapes of layers in all" in line for line in faults(many))
    wide = small()
    wide["layers"][0]["out_channels"] = wide["layers"][1]["out_channels"] = 2**14
    [told] = faults(wide)
    assert "expected at most 1,000,000,000 parameters in the largest network, got " in told
    wrong = small() | {f"key{n}": 0 for n in range(500)}
    lines = faults(wrong)
    assert (len(lines), lines[-1]) == (32, "and 470 more")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1]", "expected a JSON object"),
        ("{", "expected JSON: "),
        ("[" * 200_000, "expected JSON: "),
        (" " * (2**20 + 1), "expected a space's description of 1 MiB or less"),
        (b"\xff\xfe\xff", "expected JSON: "),
        (None, "can't be read: No such file"),
    ],
)
def test_files_that_are_no_description_are_refused(tmp_path, content, text):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_names_are_the_packages_or_a_files(tmp_path):
    with pytest.raises(SpaceError, match=r"or the path of a \.json file; got 'mine'"):
        load_space("mine")
    path = write(tmp_path, small(), "ofa-mbv3-w1.0.json")
    with pytest.raises(SpaceError, match="the package has one of this name; choose another"):
        load_space(path)
