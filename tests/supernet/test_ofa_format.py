"""Official specialised networks: read back, and refused where they fit no space."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tailorbird.errors import SpaceError
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.ofa_format import read_specialized

FOLDER = (
    Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data"))
    / "ofa/specialized"
)


def conv(shape):
    return {
        "name": "ConvLayer",
        "kernel_size": shape.kernel,
        "stride": shape.stride,
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "use_bn": shape.norm,
        "act_func": shape.activation,
    }


def described(name, shape):
    """The official description of a layer, written down anew from the published files."""
    kernel = {"kernel_size": shape.kernel, "stride": shape.stride, "act_func": shape.activation}
    channels = {"in_channels": shape.in_channels, "out_channels": shape.out_channels}
    widened = {
        "expand_ratio": shape.expand,
        "mid_channels": None if shape.expand == 1 else shape.mid_channels,
    }
    if shape.kind == "linear":
        return {
            "name": "LinearLayer",
            "in_features": shape.in_channels,
            "out_features": shape.out_channels,
            "bias": True,
            "use_bn": False,
        }
    if shape.kind == "bottleneck":
        return {
            "name": "ResNetBottleneckBlock",
            **kernel,
            **channels,
            **widened,
            "groups": 1,
            "downsample_mode": "avgpool_conv",
        }
    if shape.kind == "mbconv":
        inner = {"name": "MBInvertedConvLayer", **kernel, **channels, **widened}
        return {
            "name": "MobileInvertedResidualBlock",
            "mobile_inverted_conv": {**inner, "use_se": shape.se},
            "shortcut": {"name": "IdentityLayer"} if shape.residual else None,
        }
    if shape.residual:
        return {"name": "ResidualBlock", "conv": conv(shape), "shortcut": {"name": "IdentityLayer"}}
    return conv(shape)


def configuration(space, genome):
    net = {"name": "a network", "bn": {}}
    for name, shape in space.layers(genome):
        part, _, number = name.partition(".")
        if shape.kind in ("max_pool", "global_avg_pool"):
            continue
        if number:
            net.setdefault(part, []).append(described(name, shape))
        else:
            net[part] = described(name, shape)
    return {"net": net, "run": {"image_size": int(space.space.choices[0].values[genome[0]])}}


@pytest.fixture
def config():
    space = load_space("ofa-mbv3-w1.2")
    return configuration(space, space.space.sample(1, np.random.default_rng(5))[0])


def refused(tmp_path, config, match):
    path = tmp_path / "net.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(SpaceError, match=match):
        read_specialized(path)


@pytest.mark.data
def test_all_official_networks_are_read():
    paths = sorted(FOLDER.glob("*.json"))
    if not paths:
        pytest.skip(f"real data missing: no folder ofa/specialized in TAILORBIRD_DATA ({FOLDER})")
    assert len(paths) == 19
    for path in paths:
        found = read_specialized(path)
        given = json.loads(path.read_text())
        size = given["run"]["image_size"]
        space = load_space(found["space"], resolutions=[size])
        genome = space.genomes([found["architecture"]])[0]
        again = configuration(space, genome)
        blocks = [
            {k: block["mobile_inverted_conv"][k] for k in block["mobile_inverted_conv"]}
            for block in given["net"]["blocks"]
        ]
        assert [b["mobile_inverted_conv"] for b in again["net"]["blocks"]] == blocks
        assert space.name.startswith("ofa-proxyless" if "cpu" in path.name else "ofa-mbv3")


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "ofa-proxyless-w1.3", "ofa-resnet50d"])
def test_random_members_come_back(name, tmp_path):
    space = load_space(name)
    path = tmp_path / "net.json"
    for genome in space.space.sample(15, np.random.default_rng(0)):
        path.write_text(json.dumps(configuration(space, genome)))
        found = read_specialized(path)
        assert found["space"] == name
        # Two widths of the stem of ResNet-50D round to one: the layers are the network.
        assert space.layers(space.genomes([found["architecture"]])[0]) == space.layers(genome)


def test_the_downloaded_pair_of_files(tmp_path, config):
    (tmp_path / "net.config").write_text(json.dumps(config["net"]))
    (tmp_path / "run.config").write_text(json.dumps(config["run"]))
    assert read_specialized(tmp_path)["space"] == "ofa-mbv3-w1.2"


def test_what_lies_outside_is_named(tmp_path, config):
    config["net"]["blocks"][3]["mobile_inverted_conv"]["kernel_size"] = 9
    config["net"]["classifier"]["out_features"] = 10
    refused(
        tmp_path,
        config,
        r"outside every space .*closest, ofa-mbv3-w1\.2, it differs in: blocks\.3 kernel=9 "
        r"\(expected 3 or 5 or 7\); classifier out_channels=10 \(expected 1000\)$",
    )


def test_too_many_and_too_few_layers(tmp_path, config):
    blocks = config["net"]["blocks"]
    refused(tmp_path, {**config, "net": {**config["net"], "blocks": blocks[:2]}}, "is missing")
    refused(
        tmp_path,
        {**config, "net": {**config["net"], "blocks": blocks + blocks[-1:] * 4}},
        "outside every space",
    )


def test_all_faults_of_a_file_are_named(tmp_path, config):
    blocks = config["net"]["blocks"]
    blocks[0] = None
    blocks[1]["mobile_inverted_conv"]["kernel_size"] = "3; import os"
    blocks[2]["mobile_inverted_conv"]["use_se"] = 1
    blocks[3]["mobile_inverted_conv"]["act_func"] = "__import__('os')"
    blocks[4]["name"] = "Exec"
    config["net"]["first_conv"]["groups"] = 2
    config["net"]["attention"] = {}
    config["run"]["image_size"] = -1
    for match in (
        r"blocks\.0: expected a described layer, got None",
        r"blocks\.1\.mobile_inverted_conv\.kernel_size: expected a positive whole number, got '3;",
        r"blocks\.2\.mobile_inverted_conv\.use_se: expected true or false, got 1",
        r"blocks\.3\.mobile_inverted_conv\.act_func: expected one of relu, relu6, h_swish, got",
        r"blocks\.4: unknown layer 'Exec'",
        r"first_conv\.groups: expected one of \(1,\), got 2",
        r"net\.attention: unknown part",
        r"run\.image_size: expected a whole number of pixels from 32 to 4096, got -1",
    ):
        refused(tmp_path, config, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "expected a JSON file"),
        ("[" * 100_000, "expected a JSON file"),
        ("[]", r"expected a JSON object, got \[\]"),
        ("{}", "expected an object 'net', got None; expected an object 'run', got None"),
        ('{"net": {}, "run": {"image_size": 224}}', "expected 1 to 1000 layers, got 0"),
        ('{"net": {"blocks": [3]}, "run": {"image_size": 224}}', "described layer, got 3"),
        ('{"net": {"blocks": 3}, "run": {}}', "got None"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, match):
    refused(tmp_path, text, match)


def test_a_missing_file(tmp_path):
    with pytest.raises(SpaceError, match=r"nothing\.json: expected a JSON file, got: .*No such"):
        read_specialized(tmp_path / "nothing.json")


def test_blocks_around_blocks(tmp_path, config):
    block = config["net"]["blocks"][0]
    config["net"]["blocks"][0] = {"name": "ResidualBlock", "conv": block, "shortcut": None}
    refused(tmp_path, config, r"blocks\.0\.conv: unknown layer 'MobileInvertedResidualBlock'")
