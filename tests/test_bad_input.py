"""What a careless or hostile user does to the command line: one message, exit code 2, no loss."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
import typer
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tailorbird import cli
from tailorbird.cli.exits import plainly
from tailorbird.demo import digits_net

NET = {"model": "tailorbird.demo:digits_net", "arguments": {"width": 8, "depth": 1}}
MODULES = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, outputs=10, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.more = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.body(self.conv(x)).mean((2, 3)))

    def body(self, x):
        return self.more(x.relu())


class Branching(Base):
    def body(self, x):
        return self.more(x) if x.sum() > 0 else x


class Inner(nn.Module):
    def forward(self, x):
        return x.relu() if x.mean() > 0 else x


class Nested(Base):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def body(self, x):
        return self.more(self.inner(x))


class Bessel(Base):
    def body(self, x):
        return torch.special.bessel_j0(self.more(x))


class Pair(Base):
    def forward(self, x):
        y = super().forward(x)
        return y, y


class Map(Base):
    def forward(self, x):
        return self.more(self.conv(x))


class NotFinite(Base):
    def __init__(self):
        super().__init__()
        self.head.weight.data.fill_(float("nan"))


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        return self.head(x.flatten(1))


def leaving():
    raise SystemExit(7)


class Images(torch.utils.data.Dataset):
    def __init__(self, broken=None, labels=True):
        self.broken, self.labels = broken, labels

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("disk on fire")
        image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))
        return (image, index % 10) if self.labels else image
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a small job with changed sections until the house; gives exit code and output."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "hostile_zoo.py").write_text(MODULES)
    yield lambda text=None, **sections: _run(tmp_path, text, sections)
    sys.modules.pop("hostile_zoo", None)


def _run(folder, text, sections):
    job = {
        "teacher": {**NET, "train": {"epochs": 1}},
        "data": {"kind": "digits", "image_size": 8},
        "house": {"teacher_blocks": 2, "donor_blocks": 0, "pruned": 0, "epochs": 0.2},
        "targets": [{"name": "edge", "limits": {"params": "0.9x"}}],
        "run": "out",
        **sections,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False) if text is None else textwrap.dedent(text))
    done = CliRunner().invoke(cli.app, ["run", str(path), "--until", "house", "--quiet"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    assert not list(folder.rglob("*.part"))
    return done.exit_code, done.output


def refused(outcome, *says):
    code, output = outcome
    assert code == 2, output
    assert output.count("error: ") == 1
    for text in says:
        assert text in output


# networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Branching", ["can't trace Branching.forward at", "line 22", "house: {leaves: [...]}"]),
        ("Nested", ["can't trace 'inner' (Inner)", 'in a job file house: {leaves: ["inner"]}']),
        ("Bessel", ["the teacher can't be exported: ", "bessel_j0", "has no ONNX form"]),
        ("Pair", ["Pair returns tuple for one image; expected one tensor"]),
        ("Map", ["Map: expected logits of shape (n, classes), got (2, 8, 8, 8); wrap the network"]),
        ("NotFinite", ["teacher: weights that are not finite: head.weight; check its training"]),
        ("Sized", ["does not run on images of shape (1, 8, 8)", "data.image_size"]),
        ("leaving", ["building it with no arguments failed: SystemExit: 7"]),
        ("Bas", ["'hostile_zoo' has no 'Bas'; near matches: Base"]),
    ],
)
def test_a_teacher_that_does_not_serve(run, name, says):
    refused(run(teacher=f"hostile_zoo:{name}"), *says)


def test_classes_and_channels_that_differ(run):
    def base(**arguments):
        return {"model": "hostile_zoo:Base", "arguments": arguments}

    refused(run(teacher=base(outputs=7)), "10 classes (0, 1, 2, ...) but the network has 7 outputs")
    refused(run(teacher=base(channels=3)), "expected input[1, 1, 8, 8] to have 3 channels")


def test_a_donor_is_checked_before_the_teacher_is_trained(run, tmp_path):
    refused(run(donors={"odd": "hostile_zoo:Branching"}), "donor 'odd': can't trace Branching")
    assert not (tmp_path / "out" / "models").exists()


def test_a_mended_job_goes_on_in_the_same_folder(run, tmp_path):
    refused(run(teacher="hostile_zoo:Branching"))
    refused(run(teacher="hostile_zoo:Nested"), "can't trace 'inner'")
    refused(run(teacher="hostile_zoo:NotFinite"), "not finite")
    assert not list(tmp_path.rglob("*.onnx"))


def test_checkpoints_that_do_not_fit(run, tmp_path):
    weights = digits_net(8, 1).state_dict()
    extra = {k: v for k, v in weights.items() if k != "head.bias"} | {"tail.bias": torch.ones(1)}
    save_file(extra, tmp_path / "names.safetensors")
    torch.save(digits_net(8, 1), tmp_path / "pickled.pt")
    (tmp_path / "huge.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, *says in (
        ("names.safetensors", "1 missing: head.bias", "1 unexpected: tail.bias"),
        ("pickled.pt", "would need unpickling, which can run code; refused"),
        ("huge.safetensors", "not a whole safetensors file"),
        ("empty.pt", "neither safetensors nor a whole torch file: EOFError; fetch or save it"),
        ("none.pt", "teacher.checkpoint (line 6): no file at"),
    ):
        refused(run(teacher={**NET, "checkpoint": name}), *says)
    assert not (tmp_path / "out").exists()


def test_training_that_diverges_says_where(run):
    train = {"epochs": 1, "learning_rate": 1e30}
    refused(run(teacher={**NET, "train": train}), "the loss is nan at step 2; a lower learning")


# images -------------------------------------------------------------------------------------------


def test_corrupt_images_are_counted_and_named(run, tmp_path):
    for number in range(24):
        path = tmp_path / "images" / f"c{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 10).save(path)
    whole = path.read_bytes()
    path.with_name("empty.png").write_bytes(b"")
    path.with_name("text.jpg").write_text("no image")
    path.with_name("cut.png").write_bytes(whole[:50])
    asked = {
        "teacher": {**NET, "arguments": {"width": 8, "depth": 1, "classes": 3}},
        "data": {"kind": "folder", "root": "images", "image_size": 8},
    }
    outcome = run(**asked)
    refused(outcome, "3 corrupt images", "empty.png: empty", "text.jpg", "cut.png", "skip_corrupt")
    asked["data"]["skip_corrupt"] = True
    asked["teacher"]["train"] = {"epochs": 1}
    code, output = run(**asked)
    assert (code, output.count("data: 3 corrupt images left out")) == (0, 1)


def test_data_sets_of_the_users_own(run):
    data = {"kind": "hostile_zoo:Images", "arguments": {"broken": 7}}
    refused(run(data=data), "image 7 can't be read: OSError: disk on fire; repair or remove it")
    data["arguments"] = {"labels": False}
    refused(run(data=data), "the images have no labels, and training teacher needs them")


# job files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [x]\nb: [*a, *a]\n", "aliases (*name) are not supported"),
        (
            "a: !!python/object/apply:os.system ['false']\n",
            "can't be used here; write the value without a tag",
        ),
        ("a: " + "{b: " * 900 + "1" + "}" * 900, "nested too deeply"),
        ("seed: " + "9" * 5000, "a value can't be read"),
        ('run: "a\\0b"', "line 1: text with a null character"),
    ],
)
def test_hostile_yaml(run, text, says):
    refused(run(text=text), says)


def test_numbers_out_of_range(run):
    limits = [-1, 0, "-0.5x", "0x", float("nan"), float("inf")]
    targets = [{"name": f"t{i}", "limits": {"latency": v}} for i, v in enumerate(limits)]
    targets.append({"name": "t0", "limits": {"params": "0.5x"}})
    outcome = run(targets=targets, seed=2**70, rounds=0, sede=1)
    refused(outcome, "error: 10 problems:", "seed (line", "expected less than 2^63")
    refused(outcome, "'t0' is already the name of targets[0]", "did you mean 'seed'?")
    assert outcome[1].count("expected a positive number or a share of the teacher") == len(limits)
    refused(run(data={"kind": "digits", "image_size": 10**8}), "expected image_size of 8 to 512")


def test_devices_that_are_not_there(run):
    def target(**device):
        return [{"name": "a", "device": device, "limits": {"params": "0.9x"}}]

    refused(run(targets=target(provider="NoProvider")), "provider 'NoProvider' is not available")
    refused(run(targets=target(threads=10**8)), "threads must be at most 1024")


# run folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("job.yaml/out", "Not a directory; give a folder that you may write to"),
        ("x" * 400, "File name too long"),
        (".", "holds files but no identity.json"),
    ],
)
def test_folders_that_cannot_be_used(run, folder, says):
    refused(run(teacher="hostile_zoo:Base", run=folder), says)


def test_a_folder_with_another_jobs_work_is_refused(run, tmp_path):
    refused(run(teacher="hostile_zoo:Base", house={"leaves": ["nowhere"]}))
    (tmp_path / "out" / "models").mkdir()
    refused(
        run(teacher="hostile_zoo:Base", seed=5),
        "belongs to another job; what differs:",
        "  seed: 0 -> 5\n",
        "give a new folder, or the job as it was to continue",
    )


def test_names_with_control_characters_do_not_reach_the_terminal():
    done = CliRunner().invoke(cli.app, ["run", "a\x1b[31m\r.yaml"])
    assert done.exit_code == 2
    assert "\x1b" not in done.output and "\r" not in done.output
    assert "a?[31m?.yaml" in done.output


class Full:
    """A command that finds no memory left."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_out_of_memory_is_one_sentence(error, capsys):
    with pytest.raises(typer.Exit) as caught:
        plainly(Full(error))()
    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory") and "memory_mb" in said
    assert said.count("\n") == 1


def test_other_faults_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        plainly(Full(RuntimeError("a fault of ours")))()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"kind": "digits", "image_size": 8, "crop_padding": 10**9}}, "0 to the image's"),
        ({"house": {"epochs": 1e308}}, "house: epochs: 1e+308 are more than 1,099,511,627,776 st"),
        ({"house": {"teacher_blocks": 10**9}}, "house.teacher_blocks (line"),
        (
            {"teacher": {**NET, "train": {"epochs": 1e300}}, "retrain": {"epochs": 1e301}},
            "retrain: epochs: 1e+301 are more than 1,099,511,627,776 steps; give fewer - training "
            "of teacher: epochs: 1e+300",
        ),
    ],
)
def test_absurd_numbers_are_told(tmp_path, changes, words):
    asked = {
        "teacher": {**NET, "train": {"epochs": 1}},
        "data": {"kind": "digits", "image_size": 8},
        "targets": [{"name": "edge", "limits": {"params": "0.9x"}}],
        "house": {"teacher_blocks": 2, "donor_blocks": 0, "pruned": 0},
        "run": str(tmp_path / "run"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(asked | changes))
    done = CliRunner().invoke(cli.app, ["run", str(tmp_path / "job.yaml"), "--until", "house"])
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.output.split())
