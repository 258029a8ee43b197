import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailorbird.errors import ConfigError, StoreError
from tailorbird.estimate.accuracy_predictor import OfaPredictor
from tailorbird.estimate.features import SpaceFeatures, architecture_features
from tailorbird.estimate.predictor_files import load, open_predictor, read_pairs
from tailorbird.estimate.train_predictor import fit
from tailorbird.space import Space
from tailorbird.supernet.architecture import load_space
from tests.estimate.test_train_predictor import FEATURES, SPACE, pairs


def test_saved_and_loaded_it_predicts_the_same(tmp_path):
    genomes, accuracies = pairs(60)
    predictor = fit(genomes[:40], accuracies[:40], FEATURES)
    predictor.save(tmp_path / "p.safetensors")
    loaded = load(tmp_path / "p.safetensors", FEATURES)
    for saved, read in zip(predictor.predict(genomes), loaded.predict(genomes), strict=True):
        assert read == pytest.approx(saved, rel=1e-9)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def metadata_of(path):
    """The text that travels in a safetensors file."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]


def saved(folder):
    path = folder / "p.safetensors"
    fit(*pairs(20), FEATURES).save(path)
    return path


def test_another_space_is_refused_with_the_first_difference(tmp_path):
    smaller = SpaceFeatures(Space(SPACE.choices[:7]))
    with pytest.raises(ConfigError) as caught:
        load(saved(tmp_path), smaller)
    text = str(caught.value)
    assert "'genes': trained on 24 columns, the features given have 21; first difference" in text
    assert "'g7=a' and 'none'; give the space that it was trained on, or train again" in text
    assert "'figures': trained on 1 columns, the features given have 0" in text


def test_damaged_predictors_list_all_faults(tmp_path):
    path = saved(tmp_path)
    tensors = load_file(path)
    del tensors["genes.scale"]
    tensors["targets"][2] = np.nan
    tensors["parameters"] = tensors["parameters"][:4]
    save_file(tensors, path, metadata=metadata_of(path))
    with pytest.raises(ConfigError) as caught:
        load(path, FEATURES)
    text = str(caught.value)
    assert "missing tensors: genes.scale" in text
    assert "targets: 1 of 20 values aren't finite" in text
    assert "parameters: expected shape (7,), got (4,)" in text


@pytest.mark.parametrize(
    ("tensor", "factor", "text"),
    [
        ("parameters", 1e3, "parameters: expected logarithms from -12 to 6"),
        ("genes.inputs", 1e200, "covariance can't be factored; train again"),
        ("genes.scale", 0, "genes.scale: expected positive numbers"),
        ("targets", 0, "targets: expected 5 or more that differ"),
    ],
)
def test_numbers_that_can_not_be(tmp_path, tensor, factor, text):
    path = saved(tmp_path)
    tensors, metadata = load_file(path), metadata_of(path)
    tensors[tensor] = tensors[tensor] * factor
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ConfigError, match=text):
        load(path, FEATURES)


@pytest.mark.parametrize("columns", ["[[[", "[]", '{"genes": 3}', "{}"])
def test_names_of_columns_that_are_damaged(tmp_path, columns):
    path = saved(tmp_path)
    save_file(load_file(path), path, metadata=metadata_of(path) | {"columns": columns})
    with pytest.raises(ConfigError, match="the columns' names are damaged; train again"):
        load(path, FEATURES)


def test_other_files(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="expected a predictor trained by Tailorbird"):
        load(tmp_path / "other.safetensors", FEATURES)
    (tmp_path / "text.safetensors").write_text("accuracy: 70")
    with pytest.raises(StoreError, match="expected a safetensors file"):
        load(tmp_path / "text.safetensors", FEATURES)
    with pytest.raises(StoreError, match="No such file"):
        load(tmp_path / "absent.safetensors", FEATURES)


def test_either_kind_of_file_is_opened(tmp_path):
    space = load_space("ofa-mbv3-w1.0", resolutions=[224])
    rng = np.random.default_rng(0)
    genomes = space.space.sample(20, rng)
    trained = fit(genomes, genomes.sum(axis=1).astype(float), architecture_features(space))
    trained.save(tmp_path / "ours.safetensors")
    opened = open_predictor(tmp_path / "ours.safetensors", space)
    assert opened(genomes) == pytest.approx(trained(genomes), rel=1e-9)
    widths = [128, 4, 4, 4, 1]
    official = {f"{2 * i}.weight": np.ones((widths[i + 1], widths[i]), "f4") for i in range(4)}
    official |= {f"{2 * i}.bias": np.zeros(widths[i + 1], "f4") for i in range(4)}
    save_file(official, tmp_path / "official.safetensors")
    assert isinstance(open_predictor(tmp_path / "official.safetensors", space), OfaPredictor)


def test_pairs_are_read_from_lines(tmp_path):
    space = load_space("ofa-mbv3-w1.0")
    genomes = space.space.sample(3, np.random.default_rng(0))
    records = [a | {"top1": 70 + i} for i, a in enumerate(space.architectures(genomes))]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n\n".join(json.dumps(record) for record in records) + "\n")
    read, accuracies = read_pairs(path, space)
    assert (read == genomes).all()
    assert accuracies.tolist() == [70, 71, 72]
    path.write_text('{"top1": "high"}\n[1]\n{oops\n')
    with pytest.raises(ConfigError) as caught:
        read_pairs(path, space)
    assert "line 1: expected an object with a number 'top1', got top1='high'" in str(caught.value)
    assert "line 2: expected an object with a number 'top1', got [1]" in str(caught.value)
    assert "line 3: not JSON" in str(caught.value)
    with pytest.raises(StoreError, match="can't read"):
        read_pairs(tmp_path / "absent.jsonl", space)
