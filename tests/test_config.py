import importlib
import random
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tailorbird.config import house_job, template
from tailorbird.config.house_job import HousePlan, check, load
from tailorbird.config.reader import read
from tailorbird.config.sections import near
from tailorbird.errors import ConfigError, DataError, StoreError, TailorbirdError
from tailorbird.export.options import QuantiseOptions
from tailorbird.pipeline import Job
from tailorbird.train.recipe import Recipe

SMALL = """\
teacher: {model: "tailorbird.demo:digits_net", arguments: {width: 8, depth: 1}, train: {epochs: 1}}
data: {kind: digits, image_size: 8}
targets: [{name: edge, limits: {latency: 0.5x}}]
"""


def plan(text: str, folder: Path = Path("/nowhere")) -> HousePlan:
    return check(read(text), folder=folder)


def build(plan: HousePlan, folder: Path = Path("/nowhere")) -> Job:
    return Job(**house_job.build(plan, folder=folder))


def problems(text: str, folder: Path = Path("/nowhere")) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        plan(text, folder)
    return caught.value.problems


def test_leaves_of_a_job_are_paths_with_or_without_quotes():
    job = SMALL + "house: {leaves: [2, '3', layers.3.router]}\n"
    assert plan(job).house.leaves == ("2", "3", "layers.3.router")
    [problem] = problems(SMALL + "house: {leaves: [2.5]}\n")
    assert "expected a list of texts or whole numbers" in problem


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder for a job and modules beside it; ``sys.path`` is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


# reading ------------------------------------------------------------------------------------------


def test_plain_types_follow_yaml_1_2():
    data = read("a: 1e-3\nb: no\nc: 010\nd: 1:30\ne: 2020-01-01\nf: 5.\ng: true\nh:\n8: x").data
    assert data == {
        "a": 1e-3, "b": "no", "c": "010", "d": "1:30", "e": "2020-01-01", "f": 5.0, "g": True,
        "h": None, "8": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty; `tailorbird init >"),
        ("- a", "expected keys and values at the top"),
        ("a: [1\nb: 2", "line 2: expected ',' or ']'"),
        ("a: 1\na: 2", "'a' is given twice, in lines 1 and 2"),
        ("a:\n  b: 1\n  b: 2", "'a.b' is given twice, in lines 2 and 3"),
        ("a: &x [1]\nb: *x", "line 2: aliases"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "can't be used here; write the value without a tag",
        ),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x01", "special characters are not allowed"),
        ("? [a]\n: 1", "line 1: a key has to be plain text"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: " + "x" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_what_is_no_plain_document_is_refused(text, says):
    with pytest.raises(ConfigError, match="job: ") as caught:
        read(text)
    assert says in str(caught.value)


def test_a_random_file_is_an_error_and_nothing_else(tmp_path):
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("ab:-[]{}&*!#'\"|>%@`?, \n\t0.") for _ in range(30))
        try:
            plan(text)
        except ConfigError:
            continue
        pytest.fail(f"accepted {text!r}")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load(tmp_path / "job.yaml")


# checking -----------------------------------------------------------------------------------------


def test_template_is_valid_and_the_resolved_job_is_the_same_job():
    first = plan(template("job"), Path("/srv"))
    again = plan(yaml.safe_dump(first.plain(), sort_keys=False), Path("/elsewhere"))
    assert again.plain() == first.plain()
    assert first.run == Path("/srv/runs/digits")
    assert first.teacher.train is not None and first.teacher.train.epochs == 12


def test_all_faults_are_told_at_once_with_place_line_and_near_matches():
    found = problems("""\
techer: {}
teacher: {model: timm:resnet18, num_clases: 10, checkpoint: nowhere.pt}
donors: {a b: {model: "a:b"}, teacher: foo}
data: {kind: cifra10}
targets:
  - name: edge
    device: {threads: 0, therads: 2}
    limits: {latency: 5, latencyy: 0.5x, latency_ms: 0.2x}
  - {name: Edge, limits: {macs: -1, size: 0.5x, size_mb: 3}}
  - limits: {}
house: {epoks: 3, recall: 2, epochs: 0}
retrain: {epochs: "5", optimizer: sgdd, momentum: 2, batch_size: 1.5}
rounds: 0
seed: true
run: 7
""")
    text = "\n".join(found)
    for expected in (
        "techer (line 1): unknown key; did you mean 'teacher'?",
        "teacher.num_clases (line 2): unknown key; did you mean 'num_classes'?",
        "teacher.checkpoint (line 2): no file at /nowhere/nowhere.pt",
        "donors.a b (line 3): the name becomes a file name",
        "donors.teacher (line 3): the name 'teacher' is taken",
        "donors.teacher.model (line 3): expected timm:NAME",
        "data.kind (line 4): unknown kind \"cifra10\"; did you mean 'cifar10' or 'cifar100'?",
        "targets[0].device.therads (line 7): unknown key; did you mean 'threads'?",
        "targets[0].device (line 7): OnnxRuntime: threads must be at least 1, got 0",
        "targets[0].limits.latency (line 8): an absolute limit needs its unit",
        "targets[0].limits.latencyy (line 8): unknown metric; did you mean 'latency'",
        "targets[1].name (line 9): 'Edge' is already the name of targets[0]",
        "targets[1].limits.macs (line 9): expected a positive number",
        "targets[1].limits.size_mb (line 9): 'size' already limits the same figure",
        "targets[2].name (line 10): missing",
        "targets[2].limits (line 10): expected at least one limit",
        "house.epoks (line 11): unknown key; did you mean 'epochs'?",
        "house.recall (line 11): expected more than 0, at most 1, got 2",
        "house.epochs (line 11): expected more than 0, got 0",
        'retrain.epochs (line 12): expected a number, got "5"',
        'retrain.optimizer (line 12): expected one of sgd, adabelief, adamw, got "sgdd"',
        "retrain.batch_size (line 12): expected a whole number, got 1.5",
        "retrain.momentum (line 12): expected a number of 0 or more and below 1",
        "rounds (line 13): expected 1 or more, got 0",
        "seed (line 14): expected a whole number, got true",
        "run (line 15): expected text or null, got 7; put it in quotes",
    ):
        assert expected in text
    assert len(found) == 27


def test_missing_and_empty_sections():
    text = "\n".join(problems("seed: 1"))
    for key in ("teacher", "data", "targets"):
        assert f"{key}: missing" in text
    text = "\n".join(problems("teacher:\ndata:\ntargets: []"))
    assert "teacher.model (line 1): missing, expected text; timm:NAME" in text
    assert "data (line 2): expected a kind: one of digits, cluttered_digits, cifar10" in text
    assert "targets (line 3): expected a list with a name, a device and limits each" in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("train: {epochs: 1}", "train: {epochs: 0}", "teacher.train.epochs (line 1): expected"),
        ("image_size: 8", "validation: 1.5", "data.validation (line 2): expected a share"),
        ("image_size: 8", "normalisation: imagenet", "data.normalisation (line 2): unknown key"),
        ("kind: digits, image_size: 8", "kind: cifar10", "data.root (line 2): missing"),
        ("kind: digits, image_size: 8", "kind: folder, root: a, image_size: [1]",
         "expected a whole number or a list of 2 whole numbers or null, got a list"),
        ("kind: digits, image_size: 8",
         "kind: cifar10, root: a, normalisation: {mean: [1], std: [0]}",
         "data.normalisation (line 2): "),
        ("limits: {latency: 0.5x}", "limits: {latency: 0.5x}, device: {provider: NoneProvider}",
         "targets[0].device (line 3): OnnxRuntime: provider 'NoneProvider' is not available"),
        ("limits: {latency: 0.5x}", "limits: {latency: 0.5x}, device: onnx",
         "unknown kind \"onnx\"; did you mean 'onnxruntime'?"),
        ("latency: 0.5x", "latency: .nan", "expected a positive number"),
        ("name: edge", "name: ../edge", "the name becomes a folder"),
        ("tailorbird.demo:digits_net", "timm:resnet18", ""),
    ],
)  # fmt: skip
def test_single_faults(old, new, says):
    assert old in SMALL
    text = SMALL.replace(old, new)
    if says:
        [problem] = problems(text)
        assert says in problem
    else:
        assert plan(text).teacher.model == new


def test_networks_from_a_zoo_must_not_be_random():
    [problem] = problems(SMALL + "donors: {a: timm:resnet18}")
    assert "random weights; give a checkpoint, arguments such as {pretrained: true}" in problem
    kept = plan(SMALL + "donors: {a: {model: timm:resnet18, arguments: {pretrained: true}}}")
    assert kept.donors["a"].arguments == {"pretrained": True}


def test_paths_start_from_the_job_file(beside):
    (beside / "w.safetensors").write_bytes(b"")
    text = SMALL.replace("train: {epochs: 1}", "checkpoint: w.safetensors").replace(
        "kind: digits, image_size: 8", "kind: parquet, files: [a/*.parquet, /b.parquet], test: c"
    )
    made = plan(text + "run: out", beside)
    assert made.teacher.checkpoint == beside / "w.safetensors"
    assert made.data.values["files"] == [str(beside / "a/*.parquet"), "/b.parquet"]
    assert made.data.values["test"] == str(beside / "c")
    assert made.run == beside / "out"
    (beside / "mine.yaml").write_text(SMALL)
    assert load(beside / "mine.yaml").run == beside / "runs" / "mine"


def test_near_matches_ignore_case_and_dashes():
    assert near("Batch-Size", ["batch_size", "epochs"]) == "; did you mean 'batch_size'?"


# building -----------------------------------------------------------------------------------------


def test_build_makes_the_job_the_same_way_each_time_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    made = [build(plan(SMALL)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = (dict(job.teacher.state_dict()) for job in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(plan(SMALL + "seed: 1")).teacher.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)
    job = made[0]
    assert isinstance(job, Job) and job.data.input_shape == (1, 8, 8)
    assert job.training["teacher"].epochs == 1 and set(job.training) == {"teacher"}
    assert job.description == plan(SMALL).plain()
    assert job.quantise == QuantiseOptions() and "quantise" in job.description


def test_modules_beside_the_job_can_be_named(beside):
    (beside / "my_parts_a.py").write_text(
        """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def images(count=40):
    return TensorDataset(torch.rand(count, 1, 8, 8), torch.arange(count) % 2)

def net(num_classes=7):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

class Clock:
    key = "clock"
    def __init__(self, tick=1.0):
        self.tick = tick
    def measure(self, models):
        return []
"""
    )
    job = build(
        plan(
            """
teacher: {model: "my_parts_a:net", num_classes: 2}
data: {kind: "my_parts_a:images", arguments: {count: 30}, validation: 0.2, flip: true}
targets:
  - name: own
    device: {kind: "my_parts_a:Clock", arguments: {tick: 2.0}}
    limits: {params: 100}
""",
            beside,
        ),
        beside,
    )
    assert job.data.size["train"] == 24 and job.data.size["validation"] == 6
    assert job.targets[0].device.key == "clock"
    assert job.teacher(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert sys.path[-1] == str(beside)  # installed packages go first


def test_task_and_strategy_of_the_users_own_are_made_once(beside):
    (beside / "my_choices_once.py").write_text(
        """
from tailorbird.search.additive import Exact
from tailorbird.task import Classification

made = []

def task():
    made.append(Classification())
    return made[-1]

def strategy():
    made.append(Exact())
    return made[-1]
"""
    )
    own = 'task: "my_choices_once:task"\nstrategy: "my_choices_once:strategy"\n'
    checked = plan(SMALL + own, beside)
    job = build(checked, beside)
    made = importlib.import_module("my_choices_once").made
    assert [id(one) for one in made] == [id(job.task), id(job.strategy)]
    assert checked.plain()["task"] == "my_choices_once:task"
    assert checked.plain()["strategy"] == "my_choices_once:strategy"
    assert plan(SMALL).plain()["task"] == "classification" and plan(SMALL).strategy is None


def test_faults_of_building_are_told_at_once(beside):
    (beside / "my_parts_b.py").write_text("def images():\n    raise ValueError('no disk')\n")
    text = """
teacher: {model: "tailorbird.demo:digit_net"}
donors: {a: {model: "tailorbird.demo:narrow_net", arguments: {widht: 3}}}
data: {kind: "my_parts_b:images"}
targets: [{name: edge, limits: {latency: 0.5x}}]
"""
    with pytest.raises(ConfigError) as caught:
        build(plan(text, beside), beside)
    teacher, donor, data = caught.value.problems
    assert teacher.startswith("teacher: ") and "digits_net" in teacher
    assert donor.startswith("donors.a: ") and "widht" in donor
    assert data.startswith("data: ") and "ValueError: no disk" in data


def test_a_single_fault_keeps_its_kind(beside):
    folder = SMALL.replace("kind: digits, image_size: 8", "kind: folder, root: missing")
    with pytest.raises(DataError, match=r"data: .*missing"):
        build(plan(folder, beside), beside)
    (beside / "w.safetensors").write_bytes(b"torn")
    torn = SMALL.replace("train: {epochs: 1}", "checkpoint: w.safetensors")
    with pytest.raises(StoreError, match="teacher: "):
        build(plan(torn, beside), beside)


def test_training_needs_labels(beside):
    (beside / "my_parts_c.py").write_text(
        "import torch\ndef images():\n    return [torch.rand(1, 8, 8) for _ in range(20)]\n"
    )
    text = SMALL.replace("kind: digits, image_size: 8", "kind: 'my_parts_c:images', labels: false")
    with pytest.raises(TailorbirdError, match="no labels, and training teacher needs them"):
        build(plan(text, beside), beside)


def test_recipes_are_named_or_are_the_section_s_own():
    by_name = plan(SMALL + "retrain: {recipe: bespoke, epochs: 2}")
    assert by_name.retrain == Recipe.named("bespoke", epochs=2)
    assert plan(SMALL + "retrain: standard").retrain == Recipe.named("standard")
    assert plan(SMALL).retrain == Recipe()
    text = SMALL + "donors: {a: {model: timm:resnet18, train: {epochs: 3}}}"
    assert plan(text).donors["a"].train == Recipe.named("standard", epochs=3)
    again = plan(yaml.safe_dump(by_name.plain()))
    assert again.retrain == by_name.retrain
    assert "did you mean 'bespoke'" in problems(SMALL + "retrain: {recipe: bespok}")[0]
