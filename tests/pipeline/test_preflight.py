"""What is tried before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tailorbird.data.images import ImageData, Normalisation, TensorSplit
from tailorbird.errors import ConfigError, MeasurementError
from tailorbird.fit.answers import Student
from tailorbird.graph.trace import trace
from tailorbird.pipeline.execute import dry_run
from tailorbird.pipeline.readings import note_readings
from tailorbird.report.house import contents
from tailorbird.report.record import TargetResult
from tailorbird.targets import Target
from tests.fakes import FakeDevice, FakeExporter, Told

from .makers import job, run_job

NORM = Normalisation((0.2, 0.2, 0.2), (0.5, 0.5, 0.5))


def colours(count=90, norm=NORM):
    """Three classes: which channel is brightest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 90, (count, 3, 8, 8), generator=generator)
    pixels[torch.arange(count), labels] += 60
    whole = TensorSplit(pixels.to(torch.uint8), labels, norm)
    return ImageData(
        train=whole.take(torch.arange(count // 2)),
        validation=whole.take(torch.arange(count // 2, count)),
        test=None,
        classes=("red", "green", "blue"),
        normalisation=norm,
        input_shape=(3, 8, 8),
        labelled=True,
        name="colours",
    )


class Brightest(nn.Module):
    """Answers the brightest channel, its classes in some order."""

    def __init__(self, order=(0, 1, 2)):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.more = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            for layer in (self.body[0], self.more):
                layer.weight.copy_(torch.eye(3)[:, :, None, None])
            self.head.weight.copy_(torch.eye(3)[list(order)])

    def forward(self, x):
        return self.head(self.more(self.body(x)).mean((2, 3)))


def tried(tmp_path, teacher, **changes):
    told = Told()
    given = {"donors": {}, "data": colours(), "check_teacher": True, **changes}
    dry_run(
        job(tmp_path / "run", teacher=teacher.eval(), **given),
        exporter=FakeExporter(),
        progress=told,
    )
    assert not (tmp_path / "run").exists()
    return "\n".join(told.lines)


def test_a_good_job_is_told_about(tmp_path):
    limits = {"edge": {"latency": "0.5x", "params": 30}}
    said = tried(tmp_path, Brightest(), limits=limits)
    assert "data: 45 train, 45 validation images, 3 classes; students are chosen on the" in said
    assert "accuracies in the report are of the validation images, also used to choose" in said
    assert "device fake: the teacher takes " in said
    assert "target edge: allowed are " in said and "30 params of 33 params" in said
    assert "estimate: about " in said


class Written(Brightest):
    """Writes into a view, which torch.fx does not carry back."""

    def forward(self, x):
        x = self.more(self.body(x))
        x.flatten(2)[..., 0].mul_(2)
        return self.head(x.mean((2, 3)))


def test_which_way_code_was_read_is_told_and_kept(tmp_path):
    donors = {"odd": Written().eval(), "plain": Brightest().eval()}
    said = tried(tmp_path, Brightest(), donors=donors)
    assert "code: teacher, plain read by torch.fx; odd read by torch.export" in said
    told = Told()
    graphs = {name: trace(network, (3, 8, 8)) for name, network in donors.items()}
    note_readings(tmp_path, graphs, told)
    (line,) = told.lines
    assert line.startswith("odd: read by torch.export; layers follow train and eval mode")
    notes = contents(tmp_path).notes
    assert notes["plain"] == ("read by torch.fx",) and notes["odd"][0] == "read by torch.export"


def test_classes_in_another_order_are_noticed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        tried(tmp_path, Brightest((1, 2, 0)))
    text = str(caught.value)
    assert "0.0 % of validation images are right as the classes are ordered, 100.0 %" in text
    assert "output 0 answers 'green'" in text and "check_teacher: false" in text
    tried(tmp_path, Brightest((1, 2, 0)), check_teacher=False)


class Constant(Brightest):
    def forward(self, x):
        return super().forward(x) * 0 + torch.tensor([1.0, 0.0, 0.0])


def test_a_teacher_near_chance_is_noticed_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"33\.3 % of 45 validation images are right, and always"):
        tried(tmp_path, Constant())
    asked = job(
        tmp_path / "run", teacher=Constant().eval(), donors={}, data=colours(), check_teacher=True
    )
    with pytest.raises(ConfigError, match=r"commonest class would give 33\.3 %"):
        run_job(asked)
    assert not (tmp_path / "run" / "house").exists()


class Picky(Brightest):
    """Right only where images are normalised as its configuration says."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # noqa: RUF012

    def forward(self, x):
        right = (x.mean((1, 2, 3)) < -0.8).float()[:, None]  # darker than the mean
        return super().forward(x) * right


def test_another_normalisation_than_timms_is_noticed(tmp_path):
    with pytest.raises(ConfigError, match=r"100\.0 % with the one that timm names for it: mean"):
        tried(tmp_path, Picky())
    fits = Normalisation((0.5,) * 3, (0.25,) * 3)
    tried(tmp_path, Picky(), data=colours(norm=fits))


class TrainedOn(Picky):
    """Of timm's, and trained on by its user with ImageNet's normalisation."""

    pretrained_cfg = {"mean": NORM.mean, "std": NORM.std}  # noqa: RUF012


def test_a_normalisation_that_was_taken_from_timm_is_tried_against_imagenets(tmp_path):
    with pytest.raises(ConfigError, match=r"normalisation in use, 95\.6 % with ImageNet's: mean"):
        tried(tmp_path, TrainedOn())


def test_a_donor_of_another_normalisation_is_named(tmp_path):
    said = tried(tmp_path, Brightest(), donors={"odd": Picky(), "like": TrainedOn()})
    assert "donor 'odd': timm names another normalisation for it, mean [0.5, 0.5, 0.5]" in said
    assert "donor 'like'" not in said


def test_images_without_labels_are_no_measure_of_the_teacher(tmp_path):
    data = colours()
    bare = {name: replace(getattr(data, name), labels=None) for name in ("train", "validation")}
    tried(tmp_path, Constant(), data=replace(data, **bare, labelled=False, classes=None))


class Unreached:
    """A device that answers nothing."""

    key = "silent"

    def measure(self, models):
        raise MeasurementError("it is switched off")


def test_a_device_that_does_not_answer_is_told_and_stops_where_there_is_no_other(tmp_path):
    targets = (
        Target("one", FakeDevice(), {"latency": "0.5x"}),
        Target("two", Unreached(), {"latency": "0.5x"}),
    )
    said = tried(tmp_path, Brightest(), targets=targets)
    assert "device silent does not answer, so that its targets can't be met: it is switched" in said
    with pytest.raises(ConfigError, match="none of the targets' devices answers"):
        tried(tmp_path, Brightest(), targets=targets[1:])


def test_what_users_print_is_one_line(tmp_path):
    assert repr(colours()) == (
        "<ImageData 'colours': 45 train, 45 validation images (3, 8, 8), 3 classes>"
    )
    result = TargetResult(name="edge", device="fake", limits={}, met=True, onnx="a/model.onnx")
    assert repr(Student(result=result, module=None)) == "<Student 'edge': met, a/model.onnx>"
