"""Spaces of supernets: genomes and official form, slots, additive tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tailorbird.errors import SpaceError
from tailorbird.supernet.architecture import (
    SPACES,
    SlotTable,
    load_space,
    make_divisible,
)

CONVOLUTIONAL = [name for name in SPACES if "vit" not in name]
COUPLED = {2: 3, 3: 4, 4: 6}
PROXYLESS_MOBILE = {
    "ks": [5, 3, 3, 3, 7, 3, 5, 5, 7, 5, 5, 5, 5, 5, 5, 5, 7, 7, 7, 7, 7],
    "e": [3, 3, 3, 3, 3, 3, 3, 3, 6, 3, 3, 3, 6, 3, 3, 3, 6, 6, 3, 3, 6],
    "d": [2, 4, 4, 4, 4, 1],
    "r": 224,
}


def genomes_of(name, count=300, seed=0):
    space = load_space(name)
    return space, space.space.sample(count, np.random.default_rng(seed))


def test_the_spaces_are_the_published_ones():
    """Counted by hand: a stage of depth d has 9^d kernels and expand ratios."""
    per_stage = sum(9**depth for depth in (2, 3, 4))
    assert load_space("ofa-mbv3-w1.2", resolutions=[224]).space.size == per_stage**5
    assert load_space("ofa-mbv3-w1.0").space.size == 25 * per_stage**5
    assert load_space("ofa-proxyless-w1.3", resolutions=[224]).space.size == per_stage**5 * 9
    fewer = sum(6**depth for depth in (1, 2, 3, 4))
    assert load_space("proxylessnas-w1.0").space.size == fewer**5 * 6
    assert load_space("compofa-mbv3-w1.0", resolutions=[224]).space.size == 243
    elastic = sum(3**depth for depth in (2, 3, 4))
    assert load_space("compofa-mbv3-w1.2-elastic-kernel", resolutions=[160]).space.size == (
        elastic**5
    )
    blocks = sum(3**d for d in (2, 3, 4)) ** 3 * sum(3**d for d in (4, 5, 6))
    assert load_space("ofa-resnet50d").space.size == 8 * 2 * 3**6 * blocks


def test_the_spaces_that_lie_in_the_package():
    assert set(SPACES) == {
        "ofa-mbv3-w1.0",
        "ofa-mbv3-w1.2",
        "ofa-proxyless-w1.3",
        "ofa-resnet50d",
        "proxylessnas-w1.0",
        "compofa-mbv3-w1.0",
        "compofa-mbv3-w1.2",
        "compofa-mbv3-w1.0-elastic-kernel",
        "compofa-mbv3-w1.2-elastic-kernel",
        *(f"cifar-{n}-w{w}" for n in ("mbv3", "compofa-mbv3") for w in ("0.25", "0.5", "1.0")),
        *(f"cifar-{n}-w{w}" for n in ("proxyless", "resnet50d") for w in ("0.25", "1.0")),
        *(f"cifar-{n}-s2-w0.25" for n in ("mbv3", "compofa-mbv3")),
        "cifar-vit-tiny",
        "vit-small",
    }


@pytest.mark.parametrize("name", SPACES)
def test_official_form_round_trip(name):
    space, genomes = genomes_of(name)
    written = space.architectures(genomes)
    assert np.array_equal(space.genomes(json.loads(json.dumps(written))), genomes)
    lengths = {key: len(v) for key, v in written[0].items() if isinstance(v, list)}
    assert lengths["e"] == sum(slot.name.startswith("blocks.") for slot in space.slots) - (
        "resnet" not in name and "vit" not in name
    )
    assert isinstance(written[0]["r"], int)


@pytest.mark.parametrize("name", SPACES)
def test_what_lies_beyond_the_depth_is_not_read_and_written_as_the_smallest(name):
    space, genomes = genomes_of(name, count=40, seed=1)
    written = space.architectures(genomes)
    rng = np.random.default_rng(2)
    scrambled = []
    for architecture, genome in zip(written, genomes, strict=True):
        active = {layer for layer, _ in space.layers(genome) if layer.startswith("blocks.")}
        first = 0 if "resnet" in name or "vit" in name else 1
        copy = json.loads(json.dumps(architecture))
        for key in set(copy) & {"ks", "e", "h"}:
            for position in range(len(copy[key])):
                if f"blocks.{position + first}" not in active:
                    smallest = 0.2 if "resnet" in name else 3
                    if "vit" in name:
                        smallest = min(architecture["h"]) if key == "h" else 2
                    if "compofa" not in name:
                        assert copy[key][position] == smallest
                    copy[key][position] = int(rng.integers(0, 9))
        scrambled.append(copy)
    assert scrambled != written
    assert np.array_equal(space.genomes(scrambled), genomes)


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONAL if "resnet" not in n])
def test_layers_are_those_of_the_architecture(name):
    """An independent reading of the official form, block by block."""
    space, genomes = genomes_of(name, count=20, seed=3)
    for architecture, genome in zip(space.architectures(genomes), genomes, strict=True):
        layers = dict(space.layers(genome))
        assert layers["first_conv"].in_size == architecture["r"]
        inside = layers["blocks.0"].out_channels
        for stage, depth in enumerate(architecture["d"]):
            for position in range(4 if stage < 5 else 1):
                index = 4 * stage + position
                if position >= depth:
                    assert f"blocks.{index + 1}" not in layers
                    continue
                shape = layers[f"blocks.{index + 1}"]
                assert shape.in_channels == inside
                assert shape.kernel == architecture["ks"][index]
                assert shape.expand == architecture["e"][index]
                assert shape.mid_channels == make_divisible(inside * shape.expand)
                if "compofa" in name:
                    assert shape.expand == COUPLED[depth]
                    if "elastic" not in name:
                        fixed = (3,) * 5 if "-s2-" in name else (3, 5, 3, 3, 5)
                        assert shape.kernel == fixed[stage]
                inside = shape.out_channels


@pytest.mark.parametrize("name", SPACES)
def test_layers_fit_together(name):
    space, genomes = genomes_of(name, count=50, seed=4)
    for genome in genomes:
        layers = [shape for _, shape in space.layers(genome)]
        for before, after in pairwise(layers):
            assert (before.out_channels, before.out_size) == (after.in_channels, after.in_size)
        for shape in layers:
            if shape.residual and shape.kind in ("conv", "mbconv"):
                assert shape.in_channels == shape.out_channels
                assert shape.in_size == shape.out_size


@pytest.mark.parametrize("name", ["cifar-vit-tiny", "vit-small"])
def test_layers_of_transformers_are_those_of_the_architecture(name):
    space, genomes = genomes_of(name, count=20, seed=3)
    for architecture, genome in zip(space.architectures(genomes), genomes, strict=True):
        patches, *blocks, mean, classifier = [shape for _, shape in space.layers(genome)]
        [depth], [width] = architecture["d"], architecture["w"]
        assert (patches.in_size, patches.in_channels) == (architecture["r"], 3)
        assert patches.in_size == patches.kernel * patches.out_size
        assert [b.heads for b in blocks] == architecture["h"][:depth]
        assert [b.mid_channels for b in blocks] == [e * width for e in architecture["e"][:depth]]
        assert {s.in_channels for s in (*blocks, mean, classifier)} == {width}
        assert {block.attention // block.heads for block in blocks} == {blocks[0].head_channels}


def test_sizes_that_cannot_be_cut_into_patches_are_refused():
    with pytest.raises(SpaceError, match=r"'vit-small' cuts images into patches of 16 pixels; "
                       r"expected multiples of that, got \[100, 200\]"):  # fmt: skip
        load_space("vit-small", resolutions=[100, 160, 200])


def test_the_stem_of_resnet50d_follows_the_first_depth():
    space = load_space("ofa-resnet50d")
    plain = space.architectures(np.zeros((1, 30), dtype=np.int64))[0]
    assert plain["d"] == [0] * 5 and plain["w"] == [0] * 6
    with_stem = {**plain, "d": [2, 0, 0, 0, 0]}
    for architecture, expected in ((plain, 2), (with_stem, 3)):
        names = [name for name, _ in space.layers(space.genomes([architecture])[0])]
        assert sum(name.startswith("input_stem") for name in names) == expected
    assert space.genomes([{**plain, "r": None, "image_size": 144}])[0, 0] == 1


@pytest.mark.parametrize("name", SPACES)
def test_sum_equals_brute_force(name):
    space, genomes = genomes_of(name, count=200, seed=5)
    rng = np.random.default_rng(6)
    values = {}

    def value(shape):
        return values.setdefault(shape, float(rng.normal()))

    table = SlotTable(space, value)
    expected = [sum(values[shape] for _, shape in space.layers(genome)) for genome in genomes]
    np.testing.assert_allclose(table.sum(genomes), expected, rtol=1e-9, atol=1e-9)
    assert table.sum(genomes[:0]).shape == (0,)
    repeated = np.repeat(genomes, 50, axis=0)  # more than one chunk
    assert np.array_equal(table.sum(repeated), np.repeat(table.sum(genomes), 50))


def test_sum_by_place_tells_equal_shapes_apart():
    space, genomes = genomes_of("ofa-mbv3-w1.2", count=50)
    table = SlotTable.per_slot(space, lambda slot, index, shape: slot.name == "blocks.3")
    has_third = [("blocks.3" in dict(space.layers(genome))) for genome in genomes]
    assert table.sum(genomes).tolist() == [float(has) for has in has_third]


def test_sum_by_index_tells_the_resolutions_of_equal_shapes_apart():
    space, genomes = genomes_of("ofa-mbv3-w1.2", count=50)
    table = SlotTable.per_slot(
        space, lambda slot, index, shape: index[0] if shape.kind == "linear" else 0
    )
    assert table.sum(genomes).tolist() == genomes[:, 0].tolist()
    assert all(slot.genes[0] == 0 for slot in space.slots)


def test_a_table_names_the_slots_without_a_figure():
    space = load_space("compofa-mbv3-w1.0", resolutions=[160, 224])
    with pytest.raises(SpaceError, match=r"not finite: blocks\.0 \(2 of 2 shapes\)$"):
        SlotTable(
            space, lambda shape: np.nan if shape.kind == "mbconv" and shape.expand == 1 else 1
        )


def test_a_table_refuses_genomes_of_another_space():
    table = SlotTable(load_space("ofa-mbv3-w1.0"), lambda shape: shape.kernel)
    with pytest.raises(SpaceError, match=r"expected shape \(n, 46\), got \(3, 30\)"):
        table.sum(np.zeros((3, 30), dtype=np.int64))


def test_all_faults_of_all_rows_are_named_at_once():
    space, genomes = genomes_of("ofa-mbv3-w1.2", count=4)
    good, kernel, depth, short = space.architectures(genomes)
    kernel["ks"][0] = 9
    depth["d"][4] = 5
    depth["r"] = 100
    short["e"] = short["e"][:-1]
    del short["d"]
    with pytest.raises(SpaceError) as caught:
        space.genomes([good, kernel, depth, short])
    text = str(caught.value)
    assert "row 0" not in text
    assert "row 1: ks[0]=9, expected one of (3, 5, 7)" in text
    assert "row 2: d[4]=5, expected one of (2, 3, 4)" in text
    assert "row 2: r=100, expected one of (128, 132," in text
    assert "row 3: 'e': expected a list of 20 numbers, got [" in text
    assert "row 3: 'd': expected a list of 5 numbers, got nothing" in text


@pytest.mark.parametrize("value", ["3", float("nan"), 10**400, True, [3], None])
def test_values_that_are_no_numbers(value):
    space, genomes = genomes_of("ofa-mbv3-w1.2", count=1)
    architecture = space.architectures(genomes)[0]
    architecture["ks"][1] = value
    with pytest.raises(SpaceError, match=r"row 0: 'ks': expected numbers, got \["):
        space.genomes([architecture])


def test_rows_that_are_no_objects():
    with pytest.raises(SpaceError, match=r"row 1: expected an object with ks, e, d, r, got \[1\]"):
        load_space("ofa-mbv3-w1.2").genomes([{}, [1]])


def test_many_faults_are_counted():
    space, genomes = genomes_of("ofa-mbv3-w1.2", count=50)
    wrong = [{**architecture, "r": 1} for architecture in space.architectures(genomes)]
    with pytest.raises(SpaceError, match=r"and 30 more$"):
        space.genomes(wrong)


def test_coupled_values_have_to_agree():
    space = load_space("compofa-mbv3-w1.0")
    largest = {"ks": None, "e": 6, "d": 4, "r": [224]}
    genome = space.genomes([largest])
    assert genome.tolist() == [[24, 2, 2, 2, 2, 2]]
    assert space.architectures(genome)[0]["ks"] == [3] * 4 + [5] * 4 + [3] * 8 + [5] * 4
    with pytest.raises(SpaceError, match=r"row 0: e\[0\]=6, expected 4 in this space"):
        space.genomes([{**largest, "d": [3, 4, 4, 4, 4]}])
    with pytest.raises(SpaceError, match=r"ks\[0\]=7, expected 3 in this space"):
        space.genomes([{**largest, "ks": [7] + [3] * 19}])


def test_a_single_block_stage_reads_any_depth():
    """The official sampler draws a depth for ProxylessNAS's last stage too, and runs one block."""
    space = load_space("ofa-proxyless-w1.3")
    smallest = {"ks": 3, "e": 3, "d": [2, 2, 2, 2, 2, 1], "r": 128}
    assert np.array_equal(
        space.genomes([{**smallest, "d": [2, 2, 2, 2, 2, 4]}]), space.genomes([smallest])
    )
    with pytest.raises(SpaceError, match=r"d\[5\]=0, expected 1 or more"):
        space.genomes([{**smallest, "d": [2, 2, 2, 2, 2, 0]}])


def test_the_published_network_for_mobile_is_a_member_of_proxylessnas():
    """Kernels and expand ratios as its layers are named in the authors' benchmark on a Pixel 1."""
    space = load_space("proxylessnas-w1.0")
    (genome,) = space.genomes([PROXYLESS_MOBILE])
    layers = space.layers(genome)
    blocks = [shape for _, shape in layers if shape.kind == "mbconv"]
    assert [name for name, _ in layers].count("blocks.3") == 0
    assert [(b.in_channels, b.out_channels) for b in blocks if not b.residual] == [
        *((32, 16), (16, 24), (24, 40), (40, 80), (80, 96), (96, 192), (192, 320))
    ]
    assert [b.kernel for b in blocks] == [3, 5, 3, 7, 3, 5, 5, *[7, 5, 5, 5], *[5] * 4, *[7] * 5]
    assert [b.expand for b in blocks] == [1, 3, 3, *[3] * 4, 6, 3, 3, 3, 6, 3, 3, 3, 6, 6, 3, 3, 6]
    assert [(name, shape.out_channels) for name, shape in layers[-3:]] == [
        ("feature_mix_layer", 1280),
        ("global_avg_pool", 1280),
        ("classifier", 1000),
    ]


def test_a_stage_of_proxylessnas_may_be_one_block():
    space = load_space("proxylessnas-w1.0")
    smallest = space.architectures(np.zeros((1, len(space.space.choices)), dtype=np.int64))[0]
    assert smallest == {"ks": [3] * 21, "e": [3] * 21, "d": [1] * 6, "r": 224}
    assert len(space.layers(space.genomes([smallest])[0])) == 2 + 6 + 3
    with pytest.raises(SpaceError, match=r"d\[2\]=0, expected one of \(1, 2, 3, 4\)"):
        space.genomes([{**smallest, "d": [1, 1, 0, 1, 1, 1]}])
    with pytest.raises(SpaceError, match=r"e\[4\]=4, expected one of \(3, 6\)"):
        space.genomes([{**smallest, "e": [3] * 4 + [4] + [3] * 16}])


def test_unknown_space_and_resolutions():
    with pytest.raises(SpaceError, match=r"expected one of cifar-compofa-mbv3-.*; got 'ofa'"):
        load_space("ofa")
    with pytest.raises(SpaceError, match=r"whole numbers of pixels from 32 .* got \[0, 12.5\]"):
        load_space("ofa-mbv3-w1.0", resolutions=[0, 224, 12.5])
    with pytest.raises(SpaceError, match="got none"):
        load_space("ofa-mbv3-w1.0", resolutions=[])
    space = load_space("ofa-mbv3-w1.0", resolutions=[224, 160, 224])
    assert space.space.choices[0].values == (160, 224)


def test_resolution_leaves_channels_alone():
    """The same genes at two resolutions: equal layers but for their sizes."""
    space = load_space("ofa-resnet50d")
    genomes = space.space.sample(2, np.random.default_rng(8))
    genomes[1] = genomes[0]
    genomes[:, 0] = 0, 7
    small, large = (
        [replace(s, in_size=0, out_size=0, kernel=0) for _, s in space.layers(g)] for g in genomes
    )
    assert small == large


def test_the_spaces_load_from_an_installed_archive(tmp_path):
    """What the wheel holds (all of the package that git doesn't ignore) suffices, zipped too."""
    root = Path(__file__).parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["src/tailorbird"]}
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "src/tailorbird"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("no git repository: the files of the wheel cannot be listed")
    archive = tmp_path / "wheel.zip"
    with zipfile.ZipFile(archive, "w") as wheel:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (root / name).exists():
                wheel.write(root / name, Path(name).relative_to("src"))
    code = (
        "from tailorbird.supernet import architecture as a; "
        "print(a.__file__, *(a.load_space(name).name for name in a.SPACES))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(archive)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    place, *names = ran.stdout.split()
    assert place.startswith(str(archive))
    assert tuple(names) == SPACES
