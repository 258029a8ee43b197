"""`tailorbird supernet` as its users see it, on tiny data."""

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tailorbird import cli
from tailorbird.config import supernet_job, template
from tailorbird.config.reader import read
from tailorbird.config.run_data import read_data, stored_images
from tailorbird.pipeline.supernet_run import evaluate_subnets, open_run
from tailorbird.pipeline.supernet_training import SupernetJob, train_run
from tailorbird.progress import Silent
from tailorbird.supernet.store import load_supernet
from tests.supernet.user import FILE, SPACE, folder, job  # noqa: F401  # a fixture

SMALL = "cifar-compofa-mbv3-s2-w0.25"


def tell(*arguments, code=0, trust=True):
    """What a command says; the folders' images are read by code of the tests' own."""
    if trust and arguments[0] in ("evaluate", "fit"):
        arguments = (*arguments, "--trust")
    done = CliRunner().invoke(cli.app, ["supernet", *map(str, arguments)])
    said = " ".join(done.output.split())
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return said


def write(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


def built_job(path):
    plan = supernet_job.load_job(path)
    return SupernetJob(**supernet_job.build_job(plan, folder=path.parent))


class Impatient(Silent):
    """Presses ctrl-C when a line or a task begins so; keeps what was said before."""

    def __init__(self, at):
        self.at, self.lines = at, []

    def say(self, line):
        self.lines.append(line)
        if line.startswith(self.at):
            raise KeyboardInterrupt

    def task(self, name, steps):
        if name.startswith(self.at):
            raise KeyboardInterrupt
        return super().task(name, steps)


class TestTheWholeWay:
    def test_train_evaluate_and_again(self, folder):  # noqa: F811
        path, run = job(folder), folder / "run"
        said = tell("train", path)
        assert "epoch 1 of 2, sandwich: loss" in said
        assert re.search(r"epoch 2 of 2, .* largest \d+\.\d\d %, smallest \d+\.\d\d %", said)
        history = json.loads((run / "history.json").read_text())
        assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
        assert history["macs"] > 0
        stored = yaml.safe_load((run / "config.yaml").read_text())
        assert stored["scheme"]["tail"] == 0.05
        assert (
            supernet_job.check_job(read((run / "config.yaml").read_text()), folder=folder).plain()
            == stored
        )

        assert "holds this supernet, trained; nothing to do" in tell("train", path)

        out = folder / "out.json"
        said = tell("evaluate", run, "--subnets", 8, "--json", out)
        found = json.loads(out.read_text())
        assert found == json.loads((run / "evaluation.json").read_text())
        assert len(found["subnets"]) == 10
        assert f"{100 * found['mean_pareto_accuracy']:.2f} %" in said
        assert "evaluate subnets" in said or "smallest" in said
        assert (run / "evaluation.png").read_bytes().startswith(b"\x89PNG")
        costs = [subnet["macs"] for subnet in found["subnets"]]
        assert found["smallest"]["macs"] == min(costs)
        assert found["largest"]["macs"] == max(costs)

        said = tell("evaluate", run, trust=False, code=2)
        assert (
            "read by code, tinyimages:images, which a folder from somebody else could name" in said
        )

        lines = (run / "evaluated.jsonl").read_text()
        tell("evaluate", run, "--subnets", 8)
        assert (run / "evaluated.jsonl").read_text() == lines

    def test_a_space_of_ones_own(self, folder):  # noqa: F811
        own = json.loads((folder / FILE).read_text())
        own["genes"]["d1"] = own["genes"]["d1"][:1]
        own["layers"][1] |= {"blocks": 1, "depth": {"gene": "d1", "values": [1]}}
        (folder / "mine.json").write_text(json.dumps(own))
        path, run = job(folder, space={"name": "mine.json", "resolutions": [32]}), folder / "run"
        tell("train", path)
        stored = yaml.safe_load((run / "config.yaml").read_text())
        assert stored["space"] == {"name": str(folder / "mine.json"), "resolutions": [32]}
        weights = run / "supernet" / "weights.safetensors"
        data = write(folder / "data.yaml", data={"kind": "tinyimages:images"})
        given = ("--space", folder / "mine.json", "--resolutions", "32", "--data", data)
        tell("import", weights, folder / "in", *given)
        for there in (run, folder / "in"):
            assert "mean Pareto accuracy" in tell("evaluate", there, "--subnets", 2)

        own["layers"][1]["kind"] = "mbcon"
        (folder / "mine.json").write_text(json.dumps(own))
        said = tell("train", path, code=2)
        assert "space.name (line 2): " in said and "mbcon" in said
        assert "--space: space 'mine'" in tell("import", weights, folder / "on", *given, code=2)
        assert "nothere.json" in tell("train", job(folder, space="nothere.json"), code=2)

    def test_latency_of_the_front(self, folder):  # noqa: F811
        tell("train", job(folder))
        said = tell("evaluate", folder / "run", "--subnets", 3, "--images", 8, "--latency")
        found = json.loads((folder / "run" / "evaluation.json").read_text())
        assert found["images"] == 8
        assert "latency: onnxruntime" in said
        assert all(one["latency_ms"] > 0 for one in found["front"] if one)
        assert found["largest"]["latency_ms"] > 0

    def test_stopped_and_continued_to_the_same_bits(self, folder):  # noqa: F811
        tell("train", job(folder, run="whole"))
        path = job(folder, run="broken", save_steps=1)
        with pytest.raises(KeyboardInterrupt):
            train_run(built_job(path), progress=Impatient("epoch 1"))
        said = tell("evaluate", folder / "broken", code=2)
        assert "isn't trained to the end; continue with `tailorbird supernet train`" in said
        assert "epoch 2 of 2" in tell("train", path)
        whole, broken = (
            load_file(folder / name / "supernet" / "weights.safetensors")
            for name in ("whole", "broken")
        )
        assert all(torch.equal(whole[name], broken[name]) for name in whole)

    def test_a_changed_job_is_refused_until_accepted(self, folder):  # noqa: F811
        tell("train", job(folder))
        longer = {"kind": "bignas", "epochs": 3, "learning_rate": 0.05, "networks": 2}
        path = job(folder, scheme=longer)
        said = tell("train", path, code=2)
        assert "what differs: - scheme.epochs: 2.0 -> 3.0 give a new folder" in said
        assert "accept the changes (accept_changes) to go on with the job as it is now" in said
        said = tell("train", path, "--accept-changes")
        assert "going on with a changed job: - scheme.epochs: 2.0 -> 3.0 epoch 3 of 3" in said
        assert "epoch 1 of" not in said
        assert "nothing to do" in tell("train", path)
        said = tell("train", job(folder, scheme="deps"), "--accept-changes", code=2)
        assert "scheme.name: 'bignas' -> 'deps'" in said
        assert "of another kind: give a new folder" in said

    def test_old_weights_are_not_a_changed_jobs(self, folder):  # noqa: F811
        tell("train", job(folder))
        longer = {"kind": "bignas", "epochs": 3, "learning_rate": 0.05, "networks": 2}
        path = job(folder, scheme=longer, seed=1)

        stopped = Impatient("train")
        with pytest.raises(KeyboardInterrupt):
            train_run(built_job(path), accept_changes=True, progress=stopped)
        said = " ".join(stopped.lines)
        assert "note: the images or their division changed: validation images may be" in said
        said = tell("evaluate", folder / "run", code=2)
        assert "isn't trained to the end; continue with `tailorbird supernet train`" in said
        tell("train", path)
        tell("evaluate", folder / "run", "--subnets", 1)

    def test_init_prints_a_job_that_is_well_formed(self, tmp_path):
        done = CliRunner().invoke(cli.app, ["supernet", "init"])
        assert done.output == template("supernet")
        plan = supernet_job.check_job(read(done.output), folder=tmp_path)
        built = SupernetJob(**supernet_job.build_job(plan, folder=tmp_path))
        assert built.data.input_shape == (3, 32, 32)
        assert built.supernet.architectures.name == SMALL


class TestImport:
    @pytest.fixture
    def trained(self, folder):  # noqa: F811
        tell("train", job(folder))
        return folder, folder / "run" / "supernet" / "weights.safetensors"

    def test_what_was_trained_evaluates_the_same(self, trained):
        folder, weights = trained  # noqa: F811
        data = write(folder / "data.yaml", data={"kind": "tinyimages:images"})
        said = tell("import", weights, folder / "in", "--space", folder / FILE, "--data", data)
        assert f"{SPACE}, 2 classes" in said
        first, second = (load_supernet(folder / name / "supernet") for name in ("run", "in"))
        for name, value in first.state_dict().items():
            assert torch.equal(second.state_dict()[name], value)
        for run in ("run", "in"):
            tell("evaluate", folder / run, "--subnets", 2)
        first, second = (
            json.loads((folder / run / "evaluation.json").read_text()) for run in ("run", "in")
        )
        assert [s["accuracy"] for s in first["subnets"]] == [
            s["accuracy"] for s in second["subnets"]
        ]
        said = tell("train", job(folder, run="in"), code=2)
        assert "holds an imported supernet; give another folder" in said

    def test_without_images_evaluating_asks_for_them(self, trained):
        folder, weights = trained  # noqa: F811
        said = tell(
            "import", weights, folder / "in", "--space", folder / FILE, "--resolutions", "48"
        )
        assert "--data FILE.yaml" in said
        said = tell("evaluate", folder / "in", code=2)
        assert "the folder names no images" in said and "give --data FILE.yaml" in said
        three = {"kind": "tinyimages:images", "arguments": {"classes": 3}}
        data = write(folder / "data.yaml", data=three)
        said = tell("evaluate", folder / "in", "--data", data, code=2)
        assert "has 3 classes, and the supernet 2 outputs; give images of its classes" in said
        write(folder / "data.yaml", data={"kind": "tinyimages:images"})
        tell("evaluate", folder / "in", "--data", data, "--subnets", 2)
        found = json.loads((folder / "in" / "evaluation.json").read_text())
        assert found["largest"]["resolution"] == 48

    def test_of_another_space_all_names_are_told(self, trained):
        folder, weights = trained  # noqa: F811
        said = tell("import", weights, folder / "in", "--space", SMALL, code=2)
        assert re.search(r"does not fit a supernet of cifar-compofa.* with 2 classes", said)
        assert re.search(r"\d+ missing: blocks\.\d+", said)
        assert re.search(r"\d+ unexpected: ", said)
        assert re.search(r"\d+ misshaped: .* instead of ", said)
        assert not (folder / "in").exists()

    def test_all_wrong_options_at_once(self, trained):
        folder, weights = trained  # noqa: F811
        wrong = ("--space", "ofa-mbv3-w1.1", "--resolutions", "16,32")
        said = tell("import", weights, folder / "in", *wrong, code=2)
        assert '--space: unknown space "ofa-mbv3-w1.1"; did you mean' in said
        assert "--resolutions: expected whole numbers of pixels from 32 to 4096, got [16]" in said

    def test_a_data_file_with_other_keys(self, trained):
        folder, weights = trained  # noqa: F811
        data = write(folder / "data.yaml", daat={"kind": "digits"})
        said = tell(
            "import", weights, folder / "in", "--space", folder / FILE, "--data", data, code=2
        )
        assert "daat (line 1): unknown key; did you mean 'data'?" in said
        assert "data: missing" in said


class TestBadJobs:
    @pytest.mark.parametrize(
        ("changed", "texts"),
        [
            ({"spcae": 1}, ["spcae (line 13): unknown key; did you mean 'space'?"]),
            ({"space": "cifar-mbv3"}, ['unknown space "cifar-mbv3"; did you mean']),
            (
                {"space": {"name": FILE, "resolutions": [31, 40]}},
                ["space.resolutions (line 3): expected whole numbers of pixels from 32", "[31]"],
            ),
            (
                {"space": {"name": "cifar-vit-tiny", "resolutions": [33]}},
                ["space.resolutions (line 3)", "patches of 4 pixels", "got [33]"],
            ),
            (
                {"scheme": "dep", "sampler": "sandwhich", "seed": -1, "dropout": 1.0},
                [
                    "4 problems",
                    "unknown scheme \"dep\"; did you mean 'deps'?",
                    "unknown sampler \"sandwhich\"; did you mean 'sandwich'",
                    "seed (line 10): expected 0 or more, got -1",
                    "dropout (line 11): expected a probability",
                ],
            ),
            (
                {"scheme": {"kind": "deps", "epochs": 0, "delay": 1.5, "tail": 1}},
                [
                    "3 problems",
                    "scheme.tail (line 9): unknown key",
                    "scheme.epochs (line 7): expected a number above 0, got 0.0",
                    "scheme.delay (line 8): expected a number of 0 or more and below 1, got 1.5",
                ],
            ),
            (
                {"scheme": {"kind": "progressive-shrinking", "phases": {"kernel": {"epochs": 0}}}},
                [
                    "scheme.phases.kernel.epochs (line 9): expected a number above 0, got 0.0",
                    "write 'kernel: null' to leave the phase out",
                ],
            ),
            (
                {"scheme": {"kind": "compofa", "epochs": 0, "phases": {"kernel": None}}},
                [
                    "scheme.epochs (line 7): expected a number above 0, got 0.0",
                    "scheme.phases.kernel (line 9): unknown phase; known: teacher, compound-1",
                ],
            ),
            (
                {"scheme": {"kind": "deps", "fixed": ["w"]}},
                ["scheme (line 5): space 'tiny-mbconv': expected kinds of genes among ks, e, d"],
            ),
            ({"recipe": {"batch_size": 1}}, ["recipe.batch_size (line 11): expected a whole"]),
            ({"start": "missing.pth", "save_steps": 0}, ["no file at", "save_steps", "1 or more"]),
            ({"new_classifier": True}, ["has no effect without start"]),
        ],
    )
    def test_faults_are_told_with_their_lines(self, folder, changed, texts):  # noqa: F811
        said = tell("train", job(folder, **changed), code=2)
        assert [text for text in texts if text not in said] == [], said
        assert not (folder / "run").exists()

    def test_what_is_missing(self, folder):  # noqa: F811
        said = tell("train", job(folder, without=("space", "data")), code=2)
        assert "2 problems" in said
        assert "space: missing, expected keys and values; such as 'space: ofa-mbv3-w1.0'" in said
        said = tell("train", folder / "none.yaml", code=2)
        assert "`tailorbird supernet init > job.yaml` writes a job to start from" in said

    def test_images_without_labels(self, folder):  # noqa: F811
        data = {"kind": "tinyimages:bare"}
        with (folder / "tinyimages.py").open("a") as file:
            file.write("\ndef bare():\n    return TensorDataset(images().tensors[0])\n")
        said = tell("train", job(folder, data=data), code=2)
        assert "has no labels, and training and judging supernets needs them" in said

    def test_a_checkpoint_to_start_from(self, folder):  # noqa: F811
        tell("train", job(folder))
        weights = folder / "run" / "supernet" / "weights.safetensors"
        more = {"kind": "tinyimages:images", "arguments": {"classes": 3}}
        changed = {"data": more, "start": str(weights), "run": "next"}
        said = tell("train", job(folder, **changed), code=2)
        assert "trained for 2 classes, and the data have 3; give images of its classes" in said
        built = built_job(job(folder, **changed, new_classifier=True))
        before, after = load_file(weights), built.supernet.state_dict()
        same = {n for n, v in before.items() if v.shape == after[n].shape and v.equal(after[n])}
        assert before.keys() - same == {"classifier.linear.weight", "classifier.linear.bias"}
        tensors = {name: value for name, value in before.items() if "first_conv" not in name}
        save_file(tensors, folder / "part.safetensors")
        said = tell("train", job(folder, start="part.safetensors", run="next"), code=2)
        assert "start: checkpoint does not fit a supernet of tiny-mbconv" in said
        assert "missing: first_conv.conv.weight" in said

    def test_compofa_in_a_space_that_is_not_coupled_says_so(self, folder):  # noqa: F811
        plan = supernet_job.load_job(job(folder, scheme="compofa"))
        [note] = plan.scheme.notes
        assert "in tiny-mbconv it opens all subnets at once" in note
        plan = supernet_job.load_job(job(folder, scheme="compofa", space=SMALL))
        assert plan.scheme.notes == ()


class TestEvaluateRefuses:
    def test_folders_without_a_supernet_and_wrong_numbers(self, folder):  # noqa: F811
        said = tell("evaluate", folder / "none", code=2)
        assert "no supernet in this folder; `tailorbird supernet train` or `import`" in said
        tell("train", job(folder, validate_epochs=None))
        said = tell("evaluate", folder / "run", "--subnets", 0, "--seed", -1, "--images", 0, code=2)
        assert "3 problems: - subnets: expected 1 or more, got 0 - seed" in said


class Asked(Silent):
    """Keeps how many subnets had to be evaluated."""

    def __init__(self):
        self.counts = []

    @contextmanager
    def task(self, name, steps):
        asked = self

        class Counting:
            def advance(self, steps=1, *, note=""):
                asked.last = note

        yield Counting()
        asked.counts.append(int(asked.last.split()[0]))


def test_what_is_known_of_other_weights_or_images_is_not_taken(folder):  # noqa: F811
    tell("train", job(folder))
    stored = stored_images(folder / "run")
    data = read_data(stored.images, seed=stored.seed, folder=stored.folder)
    run, asked = open_run(folder / "run", data, seed=stored.seed), Asked()
    genomes = np.stack([run.supernet.smallest(), run.supernet.largest()])
    first = evaluate_subnets(run, genomes)
    book = folder / "run" / "evaluated.jsonl"
    book.write_text(book.read_text() + '{"genome": [0')  # cut off by a kill
    again = evaluate_subnets(run, np.concatenate([genomes, genomes]), progress=asked)
    assert (again == np.concatenate([first, first])).all()
    assert asked.counts == []
    evaluate_subnets(run, genomes, images=4, progress=asked)
    assert asked.counts == [2]
    lines = book.read_text().splitlines()
    assert len(lines) == 5
    changed = [re.sub('"weights": ".', '"weights": "x', line) for line in lines if line[-1] == "}"]
    book.write_text("\n".join(changed) + "\n")
    evaluate_subnets(run, genomes, progress=asked)
    assert asked.counts == [2, 2]
