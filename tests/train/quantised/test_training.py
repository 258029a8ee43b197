import re
from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from tailorbird.device import ONNX
from tailorbird.errors import ExportError, StoreError, TrainingError
from tailorbird.export.exporter import Calibration
from tailorbird.export.exporters import exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.graph.serial import is_storable
from tailorbird.measure.answering import run_onnx
from tailorbird.train.quantised.match import fake_quantised
from tailorbird.train.quantised.onnx_places import read_onnx
from tailorbird.train.quantised.onnx_weights import with_weights
from tailorbird.train.quantised.training import RECIPE, train_quantised
from tests.train.quantised.makers import BATCH, Net, differences, prepared, quantise
from tests.train.test_retrain import Killed, same

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")
SHORT = replace(RECIPE, learning_rate=1e-3, batch_size=32)
ENOUGH = replace(SHORT, epochs=4, learning_rate=1e-2)
"""Wins back most of what int8 costs the network that is hard to say in it, whatever the seed."""


@pytest.fixture(scope="module")
def file(student, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return quantise(student, SHAPE, data.train.sample(128), path)


@pytest.fixture(scope="module")
def hurt_file(hurt, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("hurt") / "model.onnx"
    return quantise(hurt, SHAPE, data.train.sample(128), path)


@pytest.fixture(scope="module")
def trained(hurt, hurt_file, data):
    return begin(hurt, hurt_file, data, recipe=ENOUGH)


def begin(student, file, data, **settings):
    """With the student as reference, read with as many images as the file takes at once."""
    given = {"recipe": SHORT, "seed": 0, "device": CPU, "batch": BATCH} | settings
    return train_quantised(student, file, student, data, **given)


def right(answer, split):
    """Share of images that a network, or a file, is right on."""
    (images, labels), *_ = split.batches(len(split) // BATCH * BATCH)
    with torch.no_grad():
        return float((answer(images).argmax(1) == labels).float().mean())


def running(file):
    return lambda images: torch.from_numpy(run_onnx(file, images.numpy()))


def test_all_places_of_the_file_are_found(student, file, images):
    places = read_onnx(file, images[:BATCH])
    network = fake_quantised(student, places, images[:BATCH])
    assert network.unmatched == ()
    assert len(places.activations) == 6  # the image, three convolutions, the sum, the answer
    scales = [t for name, t in network.state_dict().items() if name.endswith("scale")]
    assert sorted(map(float, scales)) == pytest.approx(
        sorted(p.grid.scale for p in places.activations)
    )


def test_a_file_is_read_with_as_many_images_as_it_takes(file, images):
    assert read_onnx(file, images).images == BATCH
    with pytest.raises(ExportError, match=r"model\.onnx: what it has at its quantised places"):
        read_onnx(file, images[:3])


def test_it_answers_as_the_file_does(student, file, images):
    network = fake_quantised(student, read_onnx(file, images[:BATCH]), images[:BATCH])
    ours, quantisation = differences(file, network, student, images)
    assert quantisation > 1e-3
    assert ours < quantisation / 10


def test_batch_norm_keeps_its_statistics_while_it_trains(student, file, images):
    network = fake_quantised(student, read_onnx(file, images[:BATCH]), images[:BATCH]).train()
    before = {k: v.clone() for k, v in network.state_of_plain().items()}
    network(images).sum().backward()
    assert network.network.drop.training
    assert same(before, network.state_of_plain())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_state_of_plain_is_that_of_the_student(student, file, images):
    network = fake_quantised(student, read_onnx(file, images[:BATCH]), images[:BATCH])
    assert same(network.state_of_plain(), student.state_dict())


def test_training_wins_back_most_of_what_int8_costs(hurt, hurt_file, trained, data, tmp_path):
    path = tmp_path / "model.onnx"
    made = prepared(trained.module, SHAPE, path)
    onnx.save(with_weights(hurt_file, made), path)
    exact = right(hurt, data.test)
    before, after = right(running(hurt_file), data.test), right(running(path), data.test)
    assert exact - before > 0.05
    assert exact - after < (exact - before) / 3
    assert trained.trained.accuracy > trained.trained.accuracy_before


def test_what_was_trained_is_what_the_new_file_computes(hurt_file, trained, images, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(with_weights(hurt_file, prepared(trained.module, SHAPE, path)), path)
    ours, quantisation = differences(path, trained.rounding, trained.module, images)
    assert ours < quantisation / 10
    places, again = read_onnx(hurt_file, images[:BATCH]), read_onnx(path, images[:BATCH])
    assert [p.grid for p in places.activations] == [p.grid for p in again.activations]


def test_the_trained_network_is_plain(hurt, trained):
    assert trained.module.state_dict().keys() == hurt.state_dict().keys()
    assert not same(trained.module.state_dict(), hurt.state_dict())
    assert is_storable(trained.module)
    assert not trained.module.training


def test_the_same_weights_give_the_same_file(student, file, tmp_path):
    """What the tool wrote is what is written here, but for rounding of float32."""
    made = with_weights(file, prepared(student, SHAPE, tmp_path / "model.onnx"))
    ours = {e.name: onnx.numpy_helper.to_array(e) for e in made.graph.initializer}
    for entry in onnx.load(file).graph.initializer:
        theirs = onnx.numpy_helper.to_array(entry)
        assert ours[entry.name] == pytest.approx(theirs, rel=1e-6), entry.name
    assert made.graph.node == onnx.load(file).graph.node


def test_the_exporter_takes_over_the_file_that_was_trained_for(hurt, trained, data, tmp_path):
    exporter, images = exporter_for(ONNX, "int8"), data.train.sample(32)

    def final(module, path, **settings):
        calibration = Calibration(images=images, **settings)
        options = ExportOptions(dynamic_batch=True)
        return exporter.final(
            module, SHAPE, path, options=options, metadata={"a": path.name}, calibration=calibration
        )

    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    final(hurt, first)
    written = final(trained.module, second, like=first, loss=lambda path: float(path == second))
    assert (written.calibration, written.loss) == ("taken over", 1.0)
    assert exporter.metadata_of(second) == {"a": "second.onnx"}
    before, after = read_onnx(first, images), read_onnx(second, images)
    assert [p.grid for p in before.activations] == [p.grid for p in after.activations]
    network = fake_quantised(trained.module, after, images)
    ours, quantisation = differences(second, network, trained.module, images)
    assert ours < quantisation / 10


def test_a_run_that_was_killed_ends_with_the_same_bits(hurt, hurt_file, trained, data, tmp_path):
    def again(**settings):
        return begin(hurt, hurt_file, data, recipe=ENOUGH, folder=tmp_path / "qat", **settings)

    with pytest.raises(KeyboardInterrupt):
        again(progress=Killed(5))
    assert same(again().module.state_dict(), trained.module.state_dict())
    with pytest.raises(StoreError, match="seed: 0 there, 1 now"):
        again(seed=1)


def test_a_file_of_another_network_is_refused(student, hurt_file, data):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = Net().eval()
    with pytest.raises(TrainingError, match=r"edge: .*not possible here: .*were not found in it"):
        begin(other, hurt_file, data, name="edge")


def test_a_file_in_float32_is_refused(student, data, tmp_path):
    prepared(student, SHAPE, tmp_path / "model.onnx")
    with pytest.raises(TrainingError, match=re.escape("model.onnx quantises nothing")):
        begin(student, tmp_path / "model.onnx", data)


def test_a_file_that_cant_be_read_is_named(student, data, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ExportError, match=r"model\.onnx can't be read"):
        begin(student, tmp_path / "model.onnx", data)


def test_weights_of_another_structure_are_refused(file, tmp_path):
    other = prepared(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"another structure: .*expected shape \(16, 1, 3, 3\)"):
        with_weights(file, other)
