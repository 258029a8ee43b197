"""Write docs/reference.md from docstrings, and the tables of job.md and supernet.md from the code.

The tables of keys come from what checks job files, those of options from the command line.

Run from anywhere: ``python docs/make_reference.py``. The same code gives the same text.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import tailorbird
from tailorbird.cli import supernet as supernet_commands
from tailorbird.config import (
    devices,
    house_job,
    images,
    networks,
    recipes,
    schemes,
    supernet_job,
    targets,
)
from tailorbird.config.house_job import HousePlan
from tailorbird.config.sections import REQUIRED, Field, fields_of, is_section, words
from tailorbird.data.images import Normalisation
from tailorbird.data.sources import from_datasets
from tailorbird.export.options import ExportOptions, QuantiseOptions
from tailorbird.house.options import HouseOptions
from tailorbird.report.words import bare
from tailorbird.supernet import counts
from tailorbird.supernet.architecture import SPACES, load_space
from tailorbird.supernet.schemes import compofa, progressive_shrinking
from tailorbird.supernet.schemes.bignas import BigNAS
from tailorbird.supernet.schemes.deps import DepS
from tailorbird.supernet.schemes.phases import Phase
from tailorbird.supernet.schemes.progressive_shrinking import ProgressiveShrinking
from tailorbird.supernet.train_state import SupernetRecipe
from tailorbird.train.recipe import Recipe

DOCS = Path(__file__).parent

MODULES = (
    "tailorbird.targets",
    "tailorbird.errors",
    "tailorbird.models",
    "tailorbird.data.sources",
    "tailorbird.data.images",
    "tailorbird.task",
    "tailorbird.fit.candidates",
    "tailorbird.fit.fit",
    "tailorbird.fit.choose",
    "tailorbird.fit.bench",
    "tailorbird.fit.ship",
    "tailorbird.fit.judge",
    "tailorbird.house.candidates",
    "tailorbird.supernet.candidates",
    "tailorbird.graph.trace",
    "tailorbird.graph.blocks",
    "tailorbird.graph.surgery",
    "tailorbird.graph.channels",
    "tailorbird.graph.sensitivity",
    "tailorbird.graph.adapt",
    "tailorbird.graph.masks",
    "tailorbird.graph.serial",
    "tailorbird.family",
    "tailorbird.space",
    "tailorbird.supernet.architecture",
    "tailorbird.supernet.slot_table",
    "tailorbird.supernet.counts",
    "tailorbird.supernet.ofa_format",
    "tailorbird.supernet.network",
    "tailorbird.supernet.extract",
    "tailorbird.supernet.calibrate",
    "tailorbird.supernet.store",
    "tailorbird.supernet.ofa_checkpoint",
    "tailorbird.supernet.train",
    "tailorbird.supernet.train_state",
    "tailorbird.supernet.samplers",
    "tailorbird.supernet.schemes.scheme",
    "tailorbird.supernet.schemes.deps",
    "tailorbird.supernet.schemes.progressive_shrinking",
    "tailorbird.supernet.schemes.phases",
    "tailorbird.supernet.schemes.bignas",
    "tailorbird.supernet.schemes.compofa",
    "tailorbird.supernet.pareto",
    "tailorbird.supernet.build",
    "tailorbird.supernet.layers",
    "tailorbird.pipeline.supernet_training",
    "tailorbird.pipeline.supernet_run",
    "tailorbird.pipeline.supernet_evaluation",
    "tailorbird.pipeline.supernet_fit",
    "tailorbird.config.supernet_job",
    "tailorbird.config.targets",
    "tailorbird.config.devices",
    "tailorbird.config.device_text",
    "tailorbird.factories",
    "tailorbird.estimate.latency_table",
    "tailorbird.estimate.accuracy_predictor",
    "tailorbird.estimate.features",
    "tailorbird.estimate.train_predictor",
    "tailorbird.estimate.predictor_files",
    "tailorbird.estimate.learned_latency",
    "tailorbird.estimate.transfer",
    "tailorbird.estimate.predicted",
    "tailorbird.estimate.measured_table",
    "tailorbird.estimate.additive",
    "tailorbird.search.strategy",
    "tailorbird.search.many_targets",
    "tailorbird.search.evolution",
    "tailorbird.search.baselines",
    "tailorbird.search.nsga2",
    "tailorbird.search.polish",
    "tailorbird.search.outcome",
    "tailorbird.search.front",
    "tailorbird.search.exact",
    "tailorbird.search.additive",
    "tailorbird.search.reach",
    "tailorbird.search.annealing",
    "tailorbird.search.random",
    "tailorbird.pipeline.search",
    "tailorbird.train.retrain",
    "tailorbird.train.evaluate",
    "tailorbird.train.norm_stats",
    "tailorbird.train.world",
    "tailorbird.measure.counts",
    "tailorbird.measure.latencies",
    "tailorbird.measure.devices.browser.device",
    "tailorbird.measure.devices.onnxruntime",
    "tailorbird.measure.devices.ssh",
    "tailorbird.measure.devices.adb",
    "tailorbird.measure.devices.remote",
    "tailorbird.export.exporter",
    "tailorbird.export.exporters",
    "tailorbird.export.float16",
    "tailorbird.export.int8",
    "tailorbird.export.onnx",
    "tailorbird.export.openvino",
    "tailorbird.export.verify",
    "tailorbird.export.bundle",
    "tailorbird.report.record",
    "tailorbird.report.plot",
    "tailorbird.report.search_plot",
    "tailorbird.report.page",
    "tailorbird.progress",
    "tailorbird.threads",
    "tailorbird.testing.strategies",
    "tailorbird.testing.devices",
    "tailorbird.testing.images",
    "tailorbird.testing.samplers",
    "tailorbird.testing.schemes",
    "tailorbird.runfolder",
)
"""Modules whose public names are listed, besides what ``tailorbird`` itself offers."""

_SECTION = re.compile(r"^(Args|Raises|Returns|Example|Yields):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w[\w, *]*): (.*)$")

_RECIPE = {"recipe": "what is left out is as in this one, see below; the defaults are `teaching`'s"}

_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "targets": {
        "devices": "list of devices, each maybe with a list of limits; see [devices](#devices)",
        "targets": "list of targets, one student each; may be left out where devices have limits",
    },
    "target": {
        "name": "names the student's folder",
        "device": "the name of one of `devices`, or a device's keys; left out, ONNX Runtime on one "
        "thread",
        "batch": "images per call; the device's own `batch` where null, which is 1 by default",
        "precision": "what its file may compute in: `float32`, `float16`, `int8` or a list of "
        "these; `auto` for all that the device runs; the device's own `precision` where null",
        "limits": "metric -> bound; at least one",
    },
    "device": {
        "name": "under `devices` only: what targets call it; names the targets that `limits` make",
        "kind": "what measures: a kind of [devices.md](devices.md), or `package.module:name`: a "
        "class or function that returns a device. Left out: `onnxruntime`, or nothing beside a "
        "`latency_table`",
        "runtime": "another word for `kind`; of `ssh`, what runs files there",
        "latency_table": "a table of any known form; see below for who reads it",
        "batch": "images per call, for all its targets, 1 by default; a `latency_table` is of such "
        "calls",
        "precision": "what files of its targets may compute in: `auto` by default",
        "arguments": "of a `package.module:name`, its keyword arguments",
        "limits": "under `devices` only: list of limits, each of which makes a target: a latency "
        "in ms, a share of the reference's latency, or metric -> bound",
    },
    "data": {
        "kind": "which kind of images",
        "arguments": "keyword arguments of the factory",
        "normalisation": "`imagenet`, or `{mean: [...], std: [...]}` with a number per channel, "
        "for pixels from 0 to 1",
    },
    "supernet recipe": {
        "ema": "decay of a running average of the weights, which is then what the run folder holds "
        "in the end; the accuracies shown while training are of the weights themselves. null for "
        "no average",
    },
    "scheme settings": {"fixed": "kinds of genes that stay at their largest value, such as `[ks]`"},
    "scheme": {
        "epochs": "passes over the training images, all phases together",
        "learning_rate": "the highest of all phases",
        "phases": "a phase's name and its keys below, or null to leave it out",
    },
}


def split_sections(text: str) -> dict[str, str]:
    """A docstring's summary and prose under ``""``, and each of its sections by name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        match = _SECTION.match(line)
        if match:
            name = match[1]
            found[name] = [match[2].strip()] if match[2].strip() else []
        elif name and line and not line.startswith(" "):
            name = ""
            found[""].append(line)
        else:
            found[name].append(line)
    return {key: inspect.cleandoc("\n".join(lines)) for key, lines in found.items()}


def entries(section: str) -> dict[str, str]:
    """The ``name: text`` entries of a section, in order."""
    found: dict[str, str] = {}
    last = ""
    for line in section.splitlines():
        match = _ENTRY.match(line)
        if match and not line.startswith(" "):
            last = match[1]
            found[last] = match[2]
        elif last:
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found


def markdown(text: str) -> str:
    """Docstring prose in Markdown: one kind of code quotes."""
    plain = re.sub(r":(?:class|func|meth|mod):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", plain)


def describe(thing: object) -> Iterator[str]:
    """The lines of one docstring."""
    sections = split_sections(inspect.getdoc(thing) or "")
    if sections[""]:
        yield markdown(sections[""])
    for name in ("Args", "Returns", "Yields", "Raises"):
        if not sections.get(name):
            continue
        listed = entries(sections[name]) if name in ("Args", "Raises") else {}
        yield f"\n*{name}*" if listed else f"\n*{name}*: {markdown(sections[name])}"
        yield from ("",) if listed else ()
        yield from (f"- `{key}`: {markdown(text)}" for key, text in listed.items())
    if sections.get("Example"):
        example = sections["Example"]
        yield f"\n```text\n{example}\n```" if ">>>" in example else f"\n*Example*\n\n{example}"


def unquoted(text: str) -> str:
    """Annotations without the quotes that postponed evaluation leaves; default objects as calls.

    Names in a set are sorted: Python has them in another order each time.
    """
    text = re.sub(r"frozenset\(\{(.*?)\}\)", _sorted_set, text)
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)
    text = re.sub(r"<[\w.]*?(\w+) object at 0x[0-9a-f]+>", r"\1()", text)
    text = re.sub(r"<function ([\w.]+) at 0x[0-9a-f]+>", r"\1", text)
    return re.sub(r"(: |-> )'([^'\n]*)'", r"\1\2", text)


def _sorted_set(found: re.Match[str]) -> str:
    return f"frozenset({{{', '.join(sorted(found[1].split(', ')))}}})"


def signature(name: str, thing: Callable[..., object], *, drop_self: bool = False) -> str:
    """``name(arguments) -> result``, one argument per line where it is long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    parameters = list(found.parameters.values())[drop_self:]
    if inspect.isclass(thing):
        found = found.replace(return_annotation=inspect.Signature.empty)
    line = unquoted(f"{name}{found.replace(parameters=parameters)}")
    if len(line) <= 100:
        return line
    shown = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    pieces = [str(p) for p in parameters]
    first = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if first is not None and "*" in shown:
        pieces.insert(first, "*")
    result = found.return_annotation
    arrow = "" if result is inspect.Signature.empty else f" -> {result}"
    inner = "".join(f"    {piece},\n" for piece in pieces)
    return unquoted(f"{name}(\n{inner}){arrow}")


def methods(thing: type) -> Iterator[str]:
    """Public methods and properties that a class defines itself."""
    for name, member in vars(thing).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property) or type(member).__name__ == "cached_property":
            text = split_sections(inspect.getdoc(member) or "")[""]
            yield f"\n`.{name}`: {markdown(text)}\n"
        elif isinstance(member, staticmethod | classmethod) or inspect.isfunction(member):
            static = isinstance(member, staticmethod | classmethod)
            call = getattr(thing, name)
            shown = f"{thing.__name__}.{name}"
            yield f"\n```python\n{signature(shown, call, drop_self=not static)}\n```\n"
            yield from describe(call)


def entry(name: str, thing: object) -> Iterator[str]:
    """One class or function."""
    yield f"\n### {name}\n"
    if inspect.isclass(thing):
        if not issubclass(thing, BaseException) and not getattr(thing, "_is_protocol", False):
            yield f"```python\n{signature(name, thing)}\n```\n"
        yield from describe(thing)
        yield from methods(thing)
    elif callable(thing):
        yield f"```python\n{signature(name, thing)}\n```\n"
        yield from describe(thing)


def public(module: str) -> dict[str, object]:
    """Classes and functions that a module offers: its ``__all__``, or what it defines itself."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    items = {n: getattr(found, n) for n in names} if names else vars(found)
    return {
        name: thing
        for name, thing in items.items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and (names or thing.__module__ == module)
    }


def reference() -> str:
    """The whole of reference.md."""
    top = {name: getattr(tailorbird, name) for name in tailorbird.__all__}
    lines = [
        "# Reference",
        "",
        "Made from the docstrings by `docs/make_reference.py`; change those, not this file.",
        "",
        "- [tailorbird](#tailorbird)",
        *(f"- [{name}](#{name.replace('.', '')})" for name in MODULES),
        "",
        "## tailorbird",
        "",
        "```python\nimport tailorbird as tb\n```",
    ]
    for name, thing in top.items():
        lines += entry(name, thing)
    shown = {id(thing) for thing in top.values()}
    for module in MODULES:
        lines += ["", f"## {module}", ""]
        lines += describe(importlib.import_module(module))
        for name, thing in public(module).items():
            if id(thing) in shown:
                lines.append(f"\n`{name}`: see above.")
                continue
            shown.add(id(thing))
            lines += entry(name, thing)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def meanings(source: Callable[..., object]) -> dict[str, str]:
    """What a function's or record's docstring says of each argument."""
    return entries(split_sections(inspect.getdoc(source) or "").get("Args", ""))


def default(field: Field) -> str:
    """A default as it is written in YAML."""
    if field.default is REQUIRED:
        return "required"
    value = field.default
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "CIFAR's own" if isinstance(value, Normalisation) else "null"
    if value == {}:
        return "null"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def yaml_words(text: str) -> str:
    """Python's constants in YAML's spelling."""
    for word, plain in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{word}\b", plain, text)
    return text


def table(fields: Mapping[str, Field], said: Mapping[str, str]) -> str:
    """Key, type, default and meaning of each field."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        kind = "see below" if is_section(field.kind) else words(field.kind)
        meaning = yaml_words(markdown(said.get(key, "")).rstrip(".")).replace("|", "\\|")
        rows.append(f"| `{key}` | {kind} | {default(field)} | {meaning} |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """Name of a place in job.md -> the table that belongs there."""
    folder = meanings(images.DATA["folder"][0])
    found = {
        "job": table(house_job.FIELDS, {**meanings(HousePlan), **_MEANINGS["targets"]}),
        "network": table(fields_of(networks.Network), meanings(networks.Network)),
        "target": table(targets._TARGET, _MEANINGS["target"]),
        "device": table(
            {
                "name": Field(str),
                **devices.device_fields("package.module:name", targets.DEVICES),
                "limits": Field(object, None),
            },
            _MEANINGS["device"],
        ),
        "house": table(fields_of(HouseOptions), meanings(HouseOptions)),
        "retrain": table(recipes.recipe_fields("teaching"), {**meanings(Recipe), **_RECIPE}),
        "export": table(fields_of(ExportOptions), meanings(ExportOptions)),
        "quantise": table(fields_of(QuantiseOptions), meanings(QuantiseOptions)),
    }
    for kind, device in targets.DEVICES.items():
        found[kind] = table(fields_of(device, without=["seed"]), meanings(device))
    for kind, (source, _) in images.DATA.items():
        said = {**folder, **meanings(source), **_MEANINGS["data"]}
        found[f"data-{kind}"] = table(images.data_fields(kind), said)
    own = images.data_fields("package.module:factory")
    found["data-own"] = table(own, {**meanings(from_datasets), **_MEANINGS["data"]})
    return found


def supernet_tables() -> dict[str, str]:
    """Name of a place in supernet.md -> the table that belongs there."""
    recipe = {**meanings(Recipe), **meanings(SupernetRecipe), **_MEANINGS["supernet recipe"]}
    found = {
        "supernet-job": table(supernet_job.FIELDS, meanings(supernet_job.SupernetPlan)),
        "space": table(fields_of(supernet_job.NamedSpace), meanings(supernet_job.NamedSpace)),
        "spaces": spaces_table(),
        "recipe": table(fields_of(SupernetRecipe), recipe),
        "phase": table(schemes._PHASE, meanings(Phase)),
        "phases-progressive-shrinking": phases_table(
            (*progressive_shrinking.PHASES, *progressive_shrinking.WIDTH_PHASES)
        ),
        "phases-compofa": phases_table(compofa.PHASES),
    }
    own: Mapping[str, Mapping[str, str]] = {
        "deps": meanings(DepS),
        "bignas": meanings(BigNAS),
        "progressive-shrinking": {**meanings(ProgressiveShrinking), **_MEANINGS["scheme"]},
        "compofa": {**meanings(ProgressiveShrinking), **_MEANINGS["scheme"]},
    }
    for kind, scheme in schemes.SCHEMES.items():
        fields = {**scheme.fields, "kind": Field(str)}
        said = {**own[kind], **_MEANINGS["scheme settings"], "kind": f"`{kind}`"}
        plain = {key: re.sub(r"^off: ", "false: ", text) for key, text in said.items()}
        found[f"scheme-{kind}"] = table(fields, plain)
    command = typer.main.get_command(supernet_commands.app)
    assert isinstance(command, TyperGroup)
    for name, one in command.commands.items():
        assert isinstance(one, TyperCommand)
        if len(one.params) > 1:
            found[f"options-{name}"] = options_table(one)
    return found


def spaces_table() -> str:
    """Each space: its image sizes, kinds of genes, and what its subnets cost."""
    rows = ["| space | pixels | genes | MACs | parameters |", "|---|---|---|---|---|"]
    for name in SPACES:
        space = load_space(name)
        sizes = space.space.choices[0].values
        ends = np.stack([np.zeros_like(space.space.sizes), space.space.sizes - 1])
        figures = [
            " to ".join(bare(metric, float(value), 3) for value in one(space).sum(ends))
            for metric, one in (("macs", counts.macs), ("params", counts.params))
        ]
        chosen = [
            f"`{key}`"
            for key, listed in space.official.keys.items()
            if any(entry.chooses for entry in listed) and key != "r"
        ]
        pixels = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        rows.append(f"| `{name}` | {pixels} | {', '.join(chosen)} | {' | '.join(figures)} |")
    return "\n".join(rows)


def phases_table(phases: tuple[Phase, ...]) -> str:
    """The phases of a scheme, as its paper has them."""
    rows = [
        "| phase | epochs | learning rate | warm-up | opens | subnets per step | sorts channels |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase in phases:
        opened = "nothing: the full network alone"
        if phase.opens is not None:
            kinds = phase.opens.items()
            opened = ", ".join(f"`{k}`" if n is None else f"`{k}` (top {n})" for k, n in kinds)
        sorts = "yes" if phase.sort else "no"
        figures = (phase.epochs, phase.learning_rate, phase.warmup_epochs)
        numbers = " | ".join(f"{figure:g}" for figure in figures)
        rows.append(f"| `{phase.name}` | {numbers} | {opened} | {phase.networks} | {sorts} |")
    return "\n".join(rows)


def options_table(command: TyperCommand) -> str:
    """The options of a command, as ``--help`` tells them."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        if not isinstance(parameter, TyperOption) or "--help" in parameter.opts:
            continue
        names = ", ".join(f"`{name}`" for name in parameter.opts)
        value = parameter.default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        plain = "required" if parameter.required else f"{value:g}" if number else ""
        meaning = markdown(parameter.help or "").rstrip(".")
        rows.append(f"| {names} | {plain} | {meaning} |")
    return "\n".join(rows)


DOCUMENTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "job.md": tables,
    "supernet.md": supernet_tables,
}
"""Documents with tables, and what makes these."""


def filled(name: str, text: str) -> str:
    """A document with the tables between its marks made anew."""
    for place, content in DOCUMENTS[name]().items():
        mark = re.compile(rf"(<!-- keys:{place} -->\n).*?(<!-- /keys:{place} -->)", re.DOTALL)
        found = list(mark.finditer(text))
        if len(found) != 1:
            raise SystemExit(f"{name}: expected one place for keys:{place}, found {len(found)}")
        start, end = found[0].span()
        text = f"{text[:start]}{found[0][1]}\n{content}\n\n{found[0][2]}{text[end:]}"
    return text


def main() -> None:
    """Write the reference and the tables."""
    (DOCS / "reference.md").write_text(reference(), encoding="utf-8")
    for name in DOCUMENTS:
        path = DOCS / name
        path.write_text(filled(name, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
