import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tailorbird.device import FORMATS, OPENVINO
from tailorbird.errors import ExportError, TrainingError
from tailorbird.export.exporter import Calibration
from tailorbird.export.exporters import exporter_for
from tailorbird.export.options import ExportOptions
from tailorbird.fit.quantised import READERS
from tailorbird.measure.openvino import nncf, openvino, read, run_openvino, unreported
from tailorbird.train.quantised.match import fake_quantised
from tailorbird.train.quantised.openvino_places import read_openvino
from tailorbird.train.quantised.openvino_weights import with_weights
from tailorbird.train.quantised.training import RECIPE, train_quantised
from tests.marks import needs_openvino

pytestmark = needs_openvino

SHAPE = (1, 8, 8)
OPEN = ExportOptions(dynamic_batch=True)
RECIPE_HERE = replace(RECIPE, epochs=4, learning_rate=1e-2, batch_size=32)


def plain(module, path, shape=SHAPE):
    """The network as OpenVINO's float32 network."""
    exporter_for(OPENVINO, "float32").final(module, shape, path, options=OPEN, metadata={})
    return read(path)


def quantise(module, images, path, *, corrected):
    """An int8 file, made in one go, biases corrected or not."""
    model = plain(module, path.with_name("plain.xml"), images.shape[1:])
    tool = nncf()
    with unreported():
        made = tool.quantize(
            model,
            tool.Dataset(list(images.numpy()[:, None])),
            subset_size=len(images),
            advanced_parameters=tool.AdvancedQuantizationParameters(
                disable_bias_correction=not corrected
            ),
        )
        openvino().save_model(made, path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "biases corrected"])
def either(request, hurt, data, tmp_path_factory):
    """A file of the network that is hard to say in int8."""
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    return quantise(hurt, data.train.sample(32), path, corrected=request.param), request.param


@pytest.fixture(scope="module")
def file(hurt, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    return quantise(hurt, data.train.sample(32), path, corrected=False)


@pytest.fixture(scope="module")
def trained(hurt, file, data):
    return begin(hurt, file, data)


@pytest.fixture(scope="module")
def written(file, trained, data, tmp_path_factory):
    """The trained network's file, and what the exporter says of it."""
    path = tmp_path_factory.mktemp("trained") / "model.xml"
    calibration = Calibration(
        images=data.train.sample(16), like=file, loss=lambda found: float(found == path)
    )
    told = exporter_for(OPENVINO, "int8").final(
        trained.module, SHAPE, path, options=OPEN, metadata={"a": "b"}, calibration=calibration
    )
    return path, told


def begin(student, file, data, **settings):
    given = {"recipe": RECIPE_HERE, "seed": 0, "device": "cpu", "batch": 32} | settings
    return train_quantised(
        student, file, student, data, read=read_openvino, run=run_openvino, **given
    )


def differences(file, network, exact, images):
    """Mean difference of the network, and of the one in float32, from the file."""
    theirs = torch.from_numpy(run_openvino(file, images.numpy()))
    with torch.no_grad():
        return [float((one(images) - theirs).abs().mean()) for one in (network, exact)]


def right(answer, split):
    """Share of images that are told rightly."""
    (images, labels), *_ = split.batches(len(split))
    with torch.no_grad():
        return float((answer(images).argmax(1) == labels).float().mean())


def running(file):
    return lambda images: torch.from_numpy(run_openvino(file, images.numpy()))


def constants(path):
    """Values of all constants, as they are computed."""
    nodes = read(path).get_ordered_ops()
    return [node.data for node in nodes if node.get_type_name() == "Constant"]


def test_every_format_has_a_reader():
    assert READERS.keys() == {one.name for one in FORMATS}


def test_all_places_of_the_file_are_found(hurt, either, images):
    file, _ = either
    places = read_openvino(file, images)
    network = fake_quantised(hurt, places, images)
    assert network.unmatched == ()
    assert len(places.activations) == 5  # the image, three convolutions, the sum
    assert [len(constant.steps) for constant in places.constants] == [16, 16, 16, 10]
    scales = [t for name, t in network.state_dict().items() if name.endswith("scale")]
    assert sorted(map(float, scales)) == pytest.approx(
        sorted(p.grid.scale for p in places.activations)
    )
    for place in places.activations:
        back = (place.grid.whole(place.values) - place.grid.zero_point) * place.grid.scale
        assert torch.allclose(back, place.values, atol=place.grid.scale * 1e-3)


def test_it_answers_as_the_file_does(hurt, either, images):
    file, _ = either
    network = fake_quantised(hurt, read_openvino(file, images), images)
    ours, quantisation = differences(file, network, hurt, images)
    assert ours < quantisation / 10


def test_corrected_biases_are_where_training_begins(hurt, either, images):
    file, corrected = either
    network = fake_quantised(hurt, read_openvino(file, images), images)
    before, after = hurt.state_dict(), network.state_of_plain()
    changed = {k for k in before if not torch.allclose(before[k], after[k], atol=1e-4)}
    assert bool(changed) == corrected
    assert all(name.endswith("bias") for name in changed)


def test_training_wins_back_what_int8_costs(hurt, file, written, data):
    exact, before = right(hurt, data.test), right(running(file), data.test)
    after = right(running(written[0]), data.test)
    assert exact - before > 0.05
    assert exact - after < (exact - before) / 2


def test_what_was_trained_is_what_the_new_file_computes(file, trained, written, images):
    path, told = written
    assert (told.calibration, told.loss) == ("taken over", 1.0)
    assert exporter_for(OPENVINO, "int8").metadata_of(path) == {"a": "b"}
    ours, quantisation = differences(path, trained.rounding, trained.module, images)
    assert ours < quantisation / 10
    before, after = read_openvino(file, images), read_openvino(path, images)
    assert [p.grid for p in before.activations] == [p.grid for p in after.activations]


def test_the_same_weights_give_the_same_file(hurt, file, tmp_path):
    """What NNCF wrote is what is written here, but for rounding of float32."""
    made = with_weights(file, plain(hurt, tmp_path / "plain.xml"))
    openvino().save_model(made, tmp_path / "again.xml", compress_to_fp16=False)
    for ours, theirs in zip(constants(tmp_path / "again.xml"), constants(file), strict=True):
        assert ours.dtype == theirs.dtype
        away = np.abs(ours.astype(float) - theirs)
        if ours.dtype == np.int8:  # what lies between two steps goes either way
            assert away.max() <= 1
            assert away.mean() < 0.05
        else:
            assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_file_is_read_with_as_many_images_as_it_takes(file, images, tmp_path):
    model = read(file)
    model.reshape([4, *SHAPE])
    openvino().save_model(model, tmp_path / "four.xml", compress_to_fp16=False)
    places = read_openvino(tmp_path / "four.xml", images)
    assert places.images == 4
    assert len(places.activations[0].values) == 4
    with pytest.raises(ExportError, match=r"four\.xml: what it has at its quantised places"):
        read_openvino(tmp_path / "four.xml", images[:3])


def test_weights_of_another_structure_are_refused(file, tmp_path):
    other = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    with pytest.raises(ExportError, match=r"model\.xml can't take .*another structure: .*expected"):
        with_weights(file, plain(other.eval(), tmp_path / "plain.xml"))


def test_files_that_cant_be_trained_for_are_named(hurt, data, images, tmp_path):
    plain(hurt, tmp_path / "plain.xml")
    with pytest.raises(TrainingError, match=re.escape("plain.xml quantises nothing")):
        begin(hurt, tmp_path / "plain.xml", data)
    (tmp_path / "broken.xml").write_text("no network")
    with pytest.raises(ExportError, match=r"broken\.xml"):
        read_openvino(tmp_path / "broken.xml", images)
