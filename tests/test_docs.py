"""The documents say what is there: keys, examples, names, links."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from PIL import Image

from tailorbird.config import devices, house_job, images, schemes, supernet_job, targets
from tailorbird.config.house_job import HousePlan, check
from tailorbird.config.networks import Network
from tailorbird.config.reader import read
from tailorbird.config.recipes import recipe_fields
from tailorbird.config.sections import Field, fields_of, is_section, words
from tailorbird.config.supernet_job import NamedSpace, check_job
from tailorbird.config.targets import load_targets
from tailorbird.errors import MeasurementError
from tailorbird.export.onnx import export_onnx
from tailorbird.export.options import QuantiseOptions
from tailorbird.house.options import HouseOptions
from tailorbird.supernet.architecture import load_space
from tailorbird.supernet.network import build_supernet
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.targets import METRICS, Target

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WRITTEN = [path for path in DOCS if path.name != "reference.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [body for kind, body in FENCE.findall(text) if kind == language]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def label(value: Path | str) -> str:
    return name_of(value) if isinstance(value, Path) else " ".join(value.split())[:30]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the how-to shows, importable for this test only."""
    written = []
    for body in blocks(ROOT / "docs" / "howto.md", "python"):
        title = re.match(r"# (\w+)\.py\n", body)
        if title:
            (tmp_path / f"{title[1]}.py").write_text(body, encoding="utf-8")
            written.append(title[1])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path
    for name in written:
        sys.modules.pop(name, None)


# keys -------------------------------------------------------------------------------------------


def key_tables() -> dict[str, dict[str, tuple[str, str]]]:
    """Place in job.md or supernet.md -> key -> (type, default)."""
    found = {}
    for document in ("job.md", "supernet.md"):
        text = (ROOT / "docs" / document).read_text(encoding="utf-8")
        for name, body in re.findall(r"<!-- keys:(\S+) -->(.*?)<!-- /keys:", text, re.DOTALL):
            rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", body, re.MULTILINE)
            found[name] = {key: (kind, default) for key, kind, default in rows}
    return found


@pytest.fixture(scope="module")
def maker() -> types.ModuleType:
    """docs/make_reference.py."""
    source = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", ["job.md", "supernet.md"])
def test_tables_are_what_the_code_says(document: str, maker: types.ModuleType):
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert maker.filled(document, text) == text, "run: python docs/make_reference.py"


SECTIONS = {
    "job": house_job.FIELDS,
    "network": fields_of(Network),
    "target": targets._TARGET,
    "device": {
        "name": Field(str),
        **devices.device_fields("package.module:name", targets.DEVICES),
        "limits": Field(object, None),
    },
    "house": fields_of(HouseOptions),
    "retrain": recipe_fields("teaching"),
    "quantise": fields_of(QuantiseOptions),
    "data-own": images.data_fields("package.module:factory"),
    **{f"data-{kind}": images.data_fields(kind) for kind in images.DATA},
    "supernet-job": supernet_job.FIELDS,
    "space": fields_of(NamedSpace),
    "recipe": fields_of(SupernetRecipe),
    "phase": schemes._PHASE,
    **{f"scheme-{name}": kind.fields for name, kind in schemes.SCHEMES.items()},
}


CHOSEN = {(f"scheme-{name}", "kind") for name in schemes.SCHEMES}
"""Keys that choose the table that they stand in."""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_job_is_described_with_its_type_and_default(section: str):
    described = key_tables()[section]
    hint = "run: python docs/make_reference.py"
    assert list(described) == list(SECTIONS[section]), hint
    for key, field in SECTIONS[section].items():
        kind, default = described[key]
        if not is_section(field.kind):
            assert kind == words(field.kind), hint
        if isinstance(field.default, int | float | str) and (section, key) not in CHOSEN:
            assert read(f"x: {default}").data["x"] == field.default, hint


def test_devices_and_metrics_are_described():
    for kind, device in targets.DEVICES.items():
        assert set(key_tables()[kind]) == {*fields_of(device)} - {"seed"}
    text = (ROOT / "docs" / "job.md").read_text(encoding="utf-8")
    assert all(f"| `{metric}` |" in text for metric in METRICS)


def test_every_sampler_is_described():
    text = (ROOT / "docs" / "supernet.md").read_text(encoding="utf-8")
    assert all(f"| `{sampler}` |" in text for sampler in schemes.SAMPLERS)


# examples ---------------------------------------------------------------------------------------


def example_job() -> dict[str, object]:
    (body,) = blocks(ROOT / "README.md", "yaml")
    return yaml.safe_load(body)


def checked(job: dict[str, object], folder: Path) -> HousePlan:
    for network in (job["teacher"], *job["donors"].values()):
        if "checkpoint" in network:
            path = folder / network["checkpoint"]
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return check(read(yaml.safe_dump(job)), folder=folder)


def test_the_job_in_the_readme_is_a_job(tmp_path: Path):
    job = checked(example_job(), tmp_path)
    assert [target.name for target in job.targets.targets] == ["server", "edge", "pi"]
    assert job.run == tmp_path / "runs" / "pets"
    assert (job.house.epochs, job.retrain.epochs) == (3, 20)


SNIPPETS = [(path, body) for path in DOCS if path.parent != ROOT for body in blocks(path, "yaml")]
SNIPPETS += [(path, body) for path in DOCS for body in blocks(path, "yml")]
SUPERNET = {"space": "cifar-mbv3-w0.25", "data": {"kind": "digits", "image_size": 32}}


@pytest.mark.parametrize(("path", "body"), SNIPPETS, ids=label)
def test_snippets_fit_into_a_job_or_are_a_fleet(path: Path, body: str, beside: Path):
    given = yaml.safe_load(body)
    if given.keys() <= targets.KEYS.keys():
        file = beside / "targets.yaml"
        file.write_text(body, encoding="utf-8")
        assert load_targets(file)
    elif given.keys() - house_job.FIELDS.keys():
        start = beside / given.get("start", "unused")
        start.parent.mkdir(exist_ok=True)
        start.touch()
        check_job(read(yaml.safe_dump({**SUPERNET, **given})), folder=beside)
    else:
        checked({**example_job(), **given}, beside)


def test_a_wrong_key_in_a_supernets_document_would_be_found(tmp_path: Path):
    with pytest.raises(Exception, match="unknown key; did you mean 'epochs'"):
        check_job(read(yaml.safe_dump({**SUPERNET, "scheme": {"kind": "deps", "epoks": 1}})),
                  folder=tmp_path)  # fmt: skip


def test_a_wrong_key_in_a_document_would_be_found(tmp_path: Path):
    with pytest.raises(Exception, match="unknown key; did you mean 'epochs'"):
        checked({**example_job(), "house": {"epoks": 1}}, tmp_path)


PYTHON = [(path, body) for path in WRITTEN for body in blocks(path, "python")]


@pytest.mark.parametrize(("path", "body"), PYTHON, ids=label)
def test_python_examples_name_what_exists(path: Path, body: str, beside: Path):
    tree = ast.parse(body, filename=name_of(path))
    known: dict[str, object] = {}
    results: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= imported(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            returned = result_of(resolve(node.value.func, known, {}))
            for target in node.targets:
                if isinstance(target, ast.Name) and returned is not None:
                    results[target.id] = returned
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            fits(node, resolve(node.func, known, results))
        elif isinstance(node, ast.Attribute):
            resolve(node, known, results)


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, object]:
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names
        }
    module = importlib.import_module(node.module)
    return {
        alias.asname or alias.name: getattr(module, alias.name, None)
        or importlib.import_module(f"{node.module}.{alias.name}")
        for alias in node.names
    }


def resolve(node: ast.expr, known: dict[str, object], results: dict[str, object]) -> object:
    """What an expression names, where that can be told; a missing attribute is a failure."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and isinstance(results.get(node.value.id), type):
        kind = results[node.value.id]
        fields = getattr(kind, "__dataclass_fields__", {})
        assert hasattr(kind, node.attr) or node.attr in fields, f"{kind.__name__}.{node.attr}"
        return getattr(kind, node.attr, None)
    owner = resolve(node.value, known, results)
    if isinstance(owner, types.ModuleType | type):
        assert hasattr(owner, node.attr), f"{owner.__name__} has no {node.attr}"
        return getattr(owner, node.attr)
    return None


def result_of(thing: object) -> object:
    if isinstance(thing, type):
        return thing
    if inspect.isfunction(thing) and thing.__module__.startswith("tailorbird"):
        returned = typing.get_type_hints(thing).get("return")
        return returned if isinstance(returned, type) else None
    return None


def fits(call: ast.Call, thing: object) -> None:
    """A call of Tailorbird's own has to fit its signature."""
    if not getattr(thing, "__module__", "").startswith("tailorbird"):
        return
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    given = [None] * len(call.args)
    bound = inspect.isfunction(thing) and "." in thing.__qualname__
    parameters = list(inspect.signature(thing).parameters)
    if bound and parameters[:1] == ["self"]:
        given.insert(0, None)
    names = {keyword.arg: None for keyword in call.keywords}
    inspect.signature(thing).bind(*given, **names)


def test_the_student_of_the_readme_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), (0, 0, 255)).save("cat.jpg")
    brightest = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    path = Path("runs/pets/students/edge/model.onnx")
    path.parent.mkdir(parents=True)
    values = {"classes": ["red", "green", "blue"], "mean": [0.5] * 3, "std": [0.2] * 3,
              "input_shape": [3, 8, 12]}  # fmt: skip
    metadata = {f"tailorbird.{name}": json.dumps(value) for name, value in values.items()}
    export_onnx(brightest, (3, 8, 12), path, metadata=metadata)
    bodies = blocks(ROOT / "README.md", "python")
    (code,) = [body for body in bodies if "InferenceSession" in body]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "blue\n"


# supernets of the how-to ---------------------------------------------------------------------


def python_with(text: str) -> str:
    """The one Python block of the how-to that holds a text."""
    (found,) = [body for body in blocks(ROOT / "docs" / "howto.md", "python") if text in body]
    return found


def shortened(code: str, long: str, short: str) -> str:
    assert long in code
    return code.replace(long, short)


def test_the_supernet_of_the_howto_is_trained_and_exported(
    beside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(beside)
    code = python_with("export_onnx(smallest")
    exec(compile(shortened(code, "epochs=20, ramp_epochs=2", "epochs=1, ramp_epochs=0.2"),
                 "howto.md", "exec"), {})  # fmt: skip
    assert capsys.readouterr().out.count(" MACs: ") == 4
    (output,) = onnx.load(beside / "smallest.onnx").graph.output
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [1, 10]


def test_the_space_of_the_howto_is_one(tmp_path: Path):
    (body,) = blocks(ROOT / "docs" / "howto.md", "json")
    (tmp_path / "small.json").write_text(body, encoding="utf-8")
    space = load_space(str(tmp_path / "small.json"))
    supernet = build_supernet(space, generator=torch.Generator().manual_seed(0))
    assert (space.name, supernet.resolution(supernet.largest())) == ("small", 48)
    assert space.space.size == 2 * (4 + 4**2 + 4**3)


def test_the_sampler_and_the_scheme_of_the_howto_train(beside: Path):
    from typer.testing import CliRunner

    from tailorbird.cli import app

    (own,) = [
        body for body in blocks(ROOT / "docs" / "howto.md", "yaml") if "spread:Spread" in body
    ]
    base = {
        "space": "cifar-compofa-mbv3-s2-w0.25",
        "data": {"kind": "scans:scans", "normalisation": "imagenet"},
        "recipe": {"batch_size": 32},
        "validate_epochs": None,
    }
    pairs = {"kind": "pairs:Pairs", "arguments": {"epochs": 1}}
    short = {"kind": "deps", "epochs": 1, "ramp_epochs": 0.2}
    sampler = yaml.safe_load(own)["sampler"]
    for run, changed, name, samplers in (
        ("job", {"scheme": short, "sampler": sampler}, "deps", ["spread(3)"]),
        ("pairs", {"scheme": pairs}, "pairs", []),
    ):
        path = beside / f"{run}.yaml"
        path.write_text(yaml.safe_dump({**base, **changed}), encoding="utf-8")
        done = CliRunner().invoke(app, ["supernet", "train", str(path), "--quiet"])
        assert done.exit_code == 0, done.output
        made = json.loads((beside / "runs" / run / "identity.json").read_text())
        assert (made["scheme"]["name"], made["samplers"]) == (name, samplers)
        assert (beside / "runs" / run / "supernet" / "weights.safetensors").is_file()


# the device of the how-to -----------------------------------------------------------------------


def relu_file(path: Path) -> Path:
    shape = [1, 3, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_the_device_of_the_howto_measures(beside: Path):
    device_class = importlib.import_module("board").CommandDevice
    command = [sys.executable, str(beside / "time_onnx.py")]
    device = device_class("here", command, runs=5)
    models = [relu_file(beside / "a.onnx"), relu_file(beside / "b.onnx")]
    latencies = device.measure(models)
    assert len(latencies) == 2
    assert all(0 < latency.median_ms < 1000 and latency.runs == 5 for latency in latencies)
    assert Target("board", device, {"latency": "0.5x"}).device.key == "here"

    models[1].write_bytes(b"no model")
    with pytest.raises(MeasurementError, match=r"(?s)here: .*b\.onnx"):
        device.measure(models)


def test_the_device_of_the_howto_tells_of_a_command_that_is_missing_or_babbles(beside: Path):
    device_class = importlib.import_module("board").CommandDevice
    with pytest.raises(MeasurementError, match=r"gone: .*no-such-command"):
        device_class("gone", ["no-such-command"]).measure([beside / "a.onnx"])
    with pytest.raises(MeasurementError, match="odd: "):
        device_class("odd", [sys.executable, "-c", "print('hello')"]).measure([beside / "a.onnx"])
    for printed in ([], [[1.0, 0.1]] * 2):
        code = f"print({json.dumps(json.dumps(printed))})"
        with pytest.raises(MeasurementError, match="odd: "):
            device_class("odd", [sys.executable, "-c", code]).measure([beside / "a.onnx"])


# links ------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=name_of)
def test_relative_links_resolve(path: Path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_commands_in_the_documents_exist():
    from typer.core import TyperGroup
    from typer.main import get_command

    from tailorbird.cli import app

    top = get_command(app)
    assert isinstance(top, TyperGroup)
    for path in WRITTEN:
        for shell in blocks(path, "sh"):
            for line in re.findall(r"^.*\btailorbird (\w.*)$", shell, re.MULTILINE):
                exists(line.split(" #")[0].split(), top, name_of(path))
            made = set(re.findall(r"^make (\w+)", shell, re.MULTILINE))
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in made)


def exists(line: list[str], command: typing.Any, place: str) -> None:
    """The command of a line, or of a group in it, and its options."""
    known = getattr(command, "commands", None)
    if known is not None:
        assert line and line[0] in known, f"{place}: no command {' '.join(line)}"
        exists(line[1:], known[line[0]], place)
        return
    options = {name for parameter in command.params for name in parameter.opts}
    unknown = {word for word in line if word.startswith("--")} - options
    assert not unknown, f"{place}: {command.name} has no {', '.join(unknown)}"


def test_the_reference_can_be_made_and_names_everything_public(maker: types.ModuleType):
    import tailorbird

    text = maker.reference()
    assert text == maker.reference()
    assert " at 0x" not in text
    titles = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert set(tailorbird.__all__) <= titles
