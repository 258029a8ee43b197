import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tailorbird.errors import ConfigError, SpaceError, StoreError
from tailorbird.estimate.accuracy_predictor import OfaPredictor
from tailorbird.supernet.architecture import load_space

MBV3 = ("0", "2", "4", "6")
RESNET = ("layers.0.0", "layers.1.0", "layers.2.0", "layers.3")


def network(names, width, hidden=7, seed=0):
    """Random tensors of a published form."""
    rng = np.random.default_rng(seed)
    widths = [width, hidden, hidden + 1, hidden + 2, 1]
    tensors = {}
    for i, name in enumerate(names):
        tensors[f"{name}.weight"] = rng.normal(0, 1, (widths[i + 1], widths[i]))
        tensors[f"{name}.bias"] = rng.normal(0, 1, widths[i + 1])
    if names is RESNET:
        del tensors["layers.3.bias"]
        tensors["base_acc"] = np.array([0.7])
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def by_hand(tensors, names, row):
    """One architecture's accuracy from its input row, layer by layer in float64."""
    values = np.array(row, dtype=np.float64)
    for name in names:
        bias = tensors.get(f"{name}.bias", tensors.get("base_acc"))
        values = tensors[f"{name}.weight"].astype(np.float64) @ values + bias
        values = values if name == names[-1] else np.maximum(values, 0)
    return values[0]


def mbv3_row(a):
    """The published encoding, written down one block at a time."""
    active = [position % 4 < a["d"][position // 4] for position in range(20)]
    row = []
    for key, values in (("ks", (3, 5, 7)), ("e", (3, 4, 6))):
        for position in range(20):
            row += [float(active[position] and a[key][position] == v) for v in values]
    return row + [float((a["r"] - 112) // 16 == i) for i in range(8)]


def resnet_row(a):
    row = [float(a["r"] == r) for r in (128, 144, 160, 176, 192, 224, 240, 256)]
    row += [float(a["d"][0] == 0), float(a["d"][0] != 0)]
    for w in a["w"]:
        row += [float(w == v) for v in (0, 1, 2)]
    start = 0
    for stage, (least, most) in enumerate(((2, 4), (2, 4), (4, 6), (2, 4)), start=1):
        for block in range(most):
            on = block < least + a["d"][stage]
            row += [float(on and a["e"][start + block] == v) for v in (0.2, 0.25, 0.35)]
        start += most
    return row


@pytest.mark.parametrize(
    ("space", "names", "width", "encode"),
    [
        ("ofa-mbv3-w1.2", MBV3, 128, mbv3_row),
        ("compofa-mbv3-w1.0", MBV3, 128, mbv3_row),  # fixed kernels, ratios that follow the depth
        ("compofa-mbv3-w1.2-elastic-kernel", MBV3, 128, mbv3_row),
        ("ofa-resnet50d", RESNET, 82, resnet_row),
    ],
)
def test_equals_the_network_run_by_hand(space, names, width, encode):
    space = load_space(space)
    tensors = network(names, width)
    genomes = space.space.sample(40, np.random.default_rng(1))
    expected = [by_hand(tensors, names, encode(a)) for a in space.architectures(genomes)]
    predicted = OfaPredictor(tensors, space).predict(genomes)
    assert predicted == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1


def test_batches_of_any_size_agree():
    space = load_space("ofa-mbv3-w1.0")
    predictor = OfaPredictor(network(MBV3, 128), space)
    genomes = space.space.sample(1100, np.random.default_rng(0))
    whole = predictor(genomes)
    assert whole.shape == (1100,)
    assert whole[510:515] == pytest.approx(predictor(genomes[510:515]), abs=1e-5)
    assert predictor(genomes[:0]).shape == (0,)
    assert whole == pytest.approx(predictor(genomes), abs=0)  # no state is left behind


def test_a_file_is_read(tmp_path):
    space = load_space("ofa-resnet50d")
    save_file(network(RESNET, 82), tmp_path / "p.safetensors")
    genomes = space.space.sample(3, np.random.default_rng(0))
    read = OfaPredictor.from_file(tmp_path / "p.safetensors", space)
    assert (read(genomes) == OfaPredictor(network(RESNET, 82), space)(genomes)).all()


def faulty(tensors, space="ofa-mbv3-w1.0", **arguments):
    with pytest.raises(ConfigError) as caught:
        OfaPredictor(tensors, load_space(space, **arguments))
    return str(caught.value)


def test_wrong_width_says_expected_given_and_way_out():
    text = faulty(network(MBV3, 124))
    assert r"0.weight: expected shape (n, 128), got (7, 124)" in text
    assert "choose the predictor published for the space" in text


def test_layers_that_do_not_fit_each_other():
    tensors = network(MBV3, 128)
    tensors["4.weight"] = tensors["4.weight"][:, :3]
    tensors["2.bias"] = tensors["2.bias"][:3]
    text = faulty(tensors)
    assert "4.weight: expected shape (n, 8), got (9, 3)" in text
    assert "2.bias: expected shape (8,), got (3,)" in text


def test_missing_and_unknown_tensors_are_named():
    tensors = network(MBV3, 128)
    tensors["8.weight"] = tensors.pop("4.bias")
    text = faulty(tensors)
    assert "1 tensors of the MobileNetV3 predictor missing: 4.bias" in text
    assert "1 tensors of the MobileNetV3 predictor unknown: 8.weight" in text


def test_neither_layout():
    text = faulty({"conv1.weight": np.zeros((3, 3), np.float32)})
    assert "expected the tensors of a published predictor (MobileNetV3: 0.bias" in text
    assert text.endswith("got conv1.weight")


def test_nan_weights_are_counted():
    tensors = network(MBV3, 128)
    tensors["2.weight"][0, :2] = np.nan
    assert "2.weight: 2 of 56 values aren't finite" in faulty(tensors)


def test_spaces_that_the_inputs_can_not_express():
    text = faulty(network(MBV3, 128), resolutions=[96, 128, 240])
    assert "r=96, 240 has no column, known are 112, 128" in text
    assert "up to 239; restrict the space's resolutions" in text
    text = faulty(network(MBV3, 128), "ofa-proxyless-w1.3")
    assert "expected 20 values of 'ks', the space has 21" in text
    assert "space ofa-resnet50d: expected 20 values of 'ks'" in faulty(
        network(MBV3, 128), "ofa-resnet50d"
    )


def test_files_that_are_no_predictor(tmp_path):
    space = load_space("ofa-mbv3-w1.0")
    with pytest.raises(StoreError, match=r"can't read .*absent.safetensors: No such file"):
        OfaPredictor.from_file(tmp_path / "absent.safetensors", space)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(StoreError, match=r"torn.safetensors: expected a safetensors file"):
        OfaPredictor.from_file(tmp_path / "torn.safetensors", space)


def test_genomes_of_another_space_and_predictions_not_finite():
    space = load_space("ofa-mbv3-w1.0")
    tensors = network(MBV3, 128)
    with pytest.raises(SpaceError, match=r"genomes: expected shape \(n, 46\), got \(2, 12\)"):
        OfaPredictor(tensors, space).predict(np.zeros((2, 12), dtype=np.int64))
    for name in ("0.weight", "2.weight", "4.weight", "6.weight"):
        tensors[name] = np.full_like(tensors[name], 3e38)
    with np.errstate(all="ignore"):
        predictor = OfaPredictor(tensors, space)
        with pytest.raises(SpaceError, match=r"isn't finite for 2 of 2 genomes; first: row 0, \[0"):
            predictor.predict(np.zeros((2, 46), dtype=np.int64))


@pytest.mark.data
@pytest.mark.parametrize(
    ("space", "weights", "goldens"),
    [
        ("ofa-mbv3-w1.2", "mbv3_accuracy_predictor", "mbv3_predictor_note10"),
        ("ofa-resnet50d", "resnet50d_accuracy_predictor", "resnet50d_predictor"),
    ],
)
def test_goldens_of_the_original_code(space, weights, goldens):
    root = Path(os.environ.get("TAILORBIRD_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not (root / "ofa").is_dir():
        pytest.skip(f"real data missing: no folder ofa in TAILORBIRD_DATA ({root})")
    space = load_space(space)
    lines = (root / "ofa/goldens" / f"{goldens}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    predictor = OfaPredictor.from_file(root / "ofa" / f"{weights}.safetensors", space)
    predicted = predictor.predict(space.genomes(records))
    assert predicted == pytest.approx([r["predicted_top1"] for r in records], abs=1e-6)
