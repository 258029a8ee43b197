"""What users got from the first edition: the scenarios, and the script that writes them down.

``python tests/reference/record.py [SECTION ...]`` runs the sections (all by default)
through the command line and rewrites ``tests/reference/SECTION.json``. ``PYTHONPATH=OTHER/src``
in front of it runs them on other code. ``--check`` compares instead of writing; ``--folder OUT``
keeps the run folders and job files of ``house`` and ``supernet`` under OUT.

The device is ``tests/fakes.py``, copied beside the job as a user's own would lie there: its
latency follows from the exported file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

HERE = Path(__file__).parent
TESTS = HERE.parent
DATA = Path(os.environ.get("TAILORBIRD_DATA", TESTS.parent / "../shared/data")) / "ofa"
DEVICE = {"kind": "analytic_device:FakeDevice", "arguments": {"base_ms": 0.001}}

HOUSE = {
    "teacher": {
        "model": "tailorbird.demo:digits_net",
        "arguments": {"width": 8, "depth": 1},
        "train": {"epochs": 3},
    },
    "donors": {
        "narrow": {
            "model": "tailorbird.demo:narrow_net",
            "arguments": {"width": 8, "depth": 1},
            "train": {"epochs": 3},
        }
    },
    "data": {"kind": "digits", "image_size": 8, "validation": 0.15},
    "targets": [
        {"name": "server", "device": DEVICE, "limits": {"latency": "0.75x"}},
        {"name": "edge", "device": DEVICE, "limits": {"latency": "0.5x", "params": "0.9x"}},
        {"name": "never", "device": DEVICE, "limits": {"latency_ms": 0.002}},
    ],
    "house": {"teacher_blocks": 6, "donor_blocks": 3, "pruned": 6, "epochs": 1},
    "retrain": {"epochs": 2},
    "rounds": 2,
    "candidates": 2,
    "seed": 1,
    "run": "run",
}
SPACE = {
    "resolutions": [32],
    "genes": {"d1": [1, 2]},
    "official": {"ks": "kernel", "e": "expand", "d": ["d1"]},
    "layers": [
        {"name": "first_conv", "kind": "conv", "out_channels": 8, "kernel": 3, "stride": 2,
         "activation": "relu"},
        {"stage": 1, "name": "blocks", "first": 0, "blocks": 2, "kind": "mbconv",
         "depth": {"gene": "d1", "values": [1, 2]}, "stride": 1, "out_channels": 8,
         "kernel": {"each": "k", "values": [3, 5]}, "expand": {"each": "e", "values": [2, 3, 5]},
         "se": True, "activation": "h_swish"},
        {"name": "global_avg_pool", "kind": "global_avg_pool"},
        {"name": "classifier", "kind": "linear", "out_channels": 10},
    ],
}  # fmt: skip
SUPERNET = {
    "space": "small.json",
    "data": {"kind": "digits", "image_size": 32, "crop_padding": 2, "validation": 0.15},
    "scheme": {"kind": "deps", "epochs": 2, "learning_rate": 0.1, "ramp_epochs": 1},
    "recipe": {"batch_size": 64},
    "seed": 0,
    "run": "run",
}
LIMITS = ["0.8x", {"latency_ms": "0.6x", "params": "0.95x"}, 0.0001]


# what a section finds -----------------------------------------------------------------------------


def house(folder: Path) -> dict[str, object]:
    """A model house for three targets; the same command again; another seed in its folder."""
    write(folder / "job.yaml", HOUSE)
    write(folder / "seed.yaml", {**HOUSE, "seed": 2})
    with user(folder) as tell:
        calls = [tell("run", name, "--quiet") for name in ("job.yaml", "job.yaml", "seed.yaml")]
        calls.append(tell("inspect", "run"))
    return run_folder(folder / "run") | {"calls": told(calls)}


def supernet(folder: Path) -> dict[str, object]:
    """A supernet trained, evaluated and fitted to three targets; each again where it is cheap."""
    write(folder / "small.json", SPACE)
    write(folder / "job.yaml", SUPERNET)
    write(folder / "seed.yaml", {**SUPERNET, "seed": 1})
    few = ("--subnets", "20", "--images", "64", "--candidates", "2", "--rounds", "2")
    with user(folder) as tell, fleet_device(folder, tell) as device:
        write(folder / "fleet.yaml", {"devices": [{"name": "box", **device, "limits": LIMITS}]})
        calls = [
            tell("supernet", *arguments)
            for arguments in (
                ("train", "job.yaml", "--quiet"),
                ("train", "job.yaml", "--quiet"),
                ("train", "seed.yaml", "--quiet"),
                ("evaluate", "run", "--subnets", "0", "--seed", "-1", "--images", "0"),
                ("evaluate", "run", "--subnets", "4", "--images", "64", "--quiet"),
                ("fit", "run", "fleet.yaml", "--subnets", "0", "--rounds", "0", "--seed", "-1"),
                ("fit", "run", "fleet.yaml", *few, "--quiet"),
                ("fit", "run", "fleet.yaml", *few, "--quiet"),
            )
        ]
    found = run_folder(folder / "run") | {"calls": told(calls)}
    here = found["here"]
    assert isinstance(here, dict)
    here["history"] = without_time(read(folder / "run" / "history.json"))
    evaluation = read(folder / "run" / "evaluation.json")
    here["subnets"] = [[one["genome"], one["accuracy"]] for one in evaluation["subnets"]]
    return found


def search(folder: Path) -> dict[str, object]:
    """Strategies on the published predictor and latency tables."""
    if not DATA.exists():
        raise FileNotFoundError(f"no folder {DATA}; name its parent in TAILORBIRD_DATA")
    tables = (DATA / "latency_tables").resolve()
    devices = [
        {"name": "note10", "latency_table": str(tables / "note10"), "limits": [15, 30, 60]},
        {"name": "jetson", "latency_table": str(tables / "jetson_cpu"),
         "limits": [1200, {"latency_ms": 2500, "macs": 400e6}]},
    ]  # fmt: skip
    write(folder / "fleet.yaml", {"devices": devices})
    predictor = DATA.resolve() / "mbv3_accuracy_predictor.safetensors"
    base = ("search", "--space", "ofa-mbv3-w1.2", "--accuracy-predictor", predictor, "--quiet")
    phone = ("--latency-table", tables / "note10", "--limits")
    with user(folder) as tell:
        calls = [
            tell(*base, *arguments, "--json", f"{number}.json")
            for number, arguments in enumerate(
                (
                    (*phone, "15,20,30,45,60"),
                    (*phone, "15,20,30,45,60", "--seed", "7"),
                    ("--limits-file", "fleet.yaml"),
                    (*phone, "20,40", "--strategy", "random", "--seed", "3"),
                    (*phone, "20,40", "--strategy", "top-down"),
                    ("--limits", "200e6,400e6", "--limit-on", "macs"),
                    (*phone, "1,2,40"),
                )
            )
        ]
    found = {path.name: read(path) for path in sorted(folder.glob("*.json"))}
    for one in found.values():
        del one["seconds"]
    close = {
        name: [target["predicted_accuracy"] for target in one["targets"]]
        for name, one in found.items()
    }
    exit_codes = [code for code, _, _ in calls]
    return {"everywhere": {"exit codes": exit_codes}, "close": close, "here": found} | {
        "calls": told(calls[-1:])
    }


def errors(folder: Path) -> dict[str, object]:
    """What a careless user is told, by every command that reads something."""
    from tests.reference.bad_input import CASES, FILES

    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    write_predictor(folder / "predictor.safetensors")
    found: dict[str, object] = {}
    with user(folder) as tell:
        for arguments in CASES:
            code, out, err = tell(*arguments.split())
            found[arguments] = {"exit code": code, "output": out, "error": err}
    return {"everywhere": found}


SECTIONS: Mapping[str, Callable[[Path], dict[str, object]]] = {
    "house": house,
    "supernet": supernet,
    "search": search,
    "errors": errors,
}


# reading a run folder -----------------------------------------------------------------------------


def run_folder(run: Path) -> dict[str, object]:
    """Files, results, choices and hashes of weights.

    ``everywhere`` holds on any machine, ``close`` within a tolerance, ``here`` only where the
    processor and the versions are the same.
    """
    report = read(run / "report.json")
    targets = {target["name"]: without_time(target) for target in report["targets"]}
    files = sorted(clean(str(path.relative_to(run))) for path in run.rglob("*") if path.is_file())
    networks = [*report["teacher"].values(), *report["donors"]]
    counted = {
        one["name"]: {key: one[key] for key in ("latency_ms", "params", "macs", "size_mb")}
        for one in networks
    }
    choices = {
        path.parent.name: read(path)["choice"]
        for path in sorted(run.glob("students/*/choice.json"))
    }
    return {
        "everywhere": {
            "kinds of files": sorted({re.sub(r"\d+", "#", name) for name in files}),
            "networks": counted,
            "met": {name: target["met"] for name, target in targets.items()},
            "limits": {name: sorted(target["limits"]) for name, target in targets.items()},
        },
        "close": {"accuracy": {one["name"]: one["accuracy"] for one in networks}},
        "here": {
            "files": files,
            "targets": targets,
            "choices": choices,
            "rejections": report["rejections"],
            "scores": optional(run / "house" / "scores.json"),
            "weights": {
                clean(str(path.relative_to(run))): hash_of(path)
                for path in sorted(run.rglob("*.safetensors"))
                if not re.search(r"epoch-|initial", str(path))
            },
        },
    }


def hash_of(path: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of a file's tensors, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        found.update(np.ascontiguousarray(tensor).tobytes())
    return found.hexdigest()


def told(calls: list[tuple[int, str, str]]) -> list[dict[str, object]]:
    """Exit codes, the lines after the tables, and news."""
    rows = []
    for code, out, err in calls:
        lines = [line for line in out.splitlines() if re.match(r"[\w.-]+: |\d+ of \d+ ", line)]
        rows.append({"exit code": code, "output": lines, "error": err.splitlines()})
    return rows


def clean(text: str) -> str:
    """Without what differs between two equal runs: hashes in names, times and their estimate."""
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "HASH", text)
    text = re.sub(r"(?m)^minutes: .*|\d+ images/s", "#", text)
    text = re.sub(r"(?m)^estimate: .*\n", "", text)
    return re.sub(r"\d+\.\d+ (s\b|min in all)", r"# \1", text)


def without_time(value: object) -> object:
    """Without the entries that tell how long something took."""
    if isinstance(value, dict):
        timed = ("minutes", "seconds", "images_per_second")
        return {key: without_time(one) for key, one in value.items() if key not in timed}
    return [without_time(one) for one in value] if isinstance(value, list) else value


# running ------------------------------------------------------------------------------------------


@contextmanager
def user(folder: Path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Calls the command line in ``folder``; gives exit code, output and errors, paths taken out."""
    from tailorbird import cli

    shutil.copy(TESTS / "fakes.py", folder / "analytic_device.py")
    before, path, threads = Path.cwd(), [*sys.path], torch.get_num_threads()
    known = set(sys.modules)

    def tell(*arguments: object) -> tuple[int, str, str]:
        runner = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"})
        done = runner.invoke(cli.app, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, hidden(done.stdout), hidden(done.stderr)

    def hidden(text: str) -> str:
        for root, name in ((folder.resolve(), "HERE"), (folder, "HERE"), (DATA.resolve(), "DATA")):
            text = text.replace(str(root), name)
        return clean("\n".join(line.rstrip() for line in text.splitlines()))

    os.chdir(folder)
    torch.set_num_threads(1)  # how threads share a product may change the last bit
    try:
        with threadpool_limits(1):
            yield tell
    finally:
        os.chdir(before)
        sys.path[:] = path
        torch.set_num_threads(threads)
        for name in set(sys.modules) - known:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


@contextmanager
def fleet_device(
    folder: Path, tell: Callable[..., tuple[int, str, str]]
) -> Iterator[dict[str, object]]:
    """The analytic device as fleet files take it.

    Those of the first edition took no device by name: there it becomes one of the known kinds.
    """
    entry = {"name": "box", "kind": DEVICE["kind"], "limits": ["0.5x"]}
    write(folder / "fleet.yaml", {"devices": [entry]})
    _, _, error = tell("supernet", "fit", "none", "fleet.yaml")
    if "unknown key" not in error:
        yield {"kind": DEVICE["kind"]}
        return
    from tailorbird.config import parts
    from tests.fakes import FakeDevice

    kinds = parts.DEVICES
    kinds["analytic"] = FakeDevice
    try:
        yield {"runtime": "analytic"}
    finally:
        del kinds["analytic"]


def write_predictor(path: Path) -> None:
    """Random weights in the layout of the published MobileNetV3 predictor."""
    rng = np.random.default_rng(3)
    tensors = {}
    for layer, (before, after) in enumerate(pairwise((128, 8, 8, 8, 1))):
        weight = rng.normal(size=(after, before)) / before**0.5
        tensors[f"{2 * layer}.weight"] = weight.astype(np.float32)
        tensors[f"{2 * layer}.bias"] = np.full(after, 0.1, np.float32)
    save_file(tensors, path)


def machine() -> dict[str, str]:
    """What figures and hashes depend on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("model\t")]
    packages = ("torch", "numpy", "scipy", "scikit-learn", "onnx", "timm")
    return {
        "processor": (names or [platform.processor() or platform.machine()])[0],
        "model": (kinds or [""])[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{package: metadata.version(package) for package in packages},
    }


# comparing ----------------------------------------------------------------------------------------


def differences(recorded: SimpleNamespace, found: SimpleNamespace) -> list[str]:
    """Every place in which what was found differs from what was recorded.

    Accuracies may be 0.15 off where the machine is another; there figures in the texts, choices
    and hashes of weights are not compared.
    """
    same = recorded.machine == found.machine
    old, new = recorded.content, found.content
    rows = list(compare(old["everywhere"], new["everywhere"], "everywhere"))
    rows += compare(old.get("close"), new.get("close"), "close", within=0.0 if same else 0.15)
    if same:
        rows += compare(old.get("here"), new.get("here"), "here")
        rows += compare(old.get("calls"), new.get("calls"), "calls")
    else:
        rows += compare(bare(old.get("calls")), bare(new.get("calls")), "calls")
    return rows


def compare(old: object, new: object, place: str, *, within: float = 0.0) -> Iterator[str]:
    """Places and both values where two trees of plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{place}/{key}: {'new' if key not in old else 'gone'}"
            else:
                yield from compare(old[key], new[key], f"{place}/{key}", within=within)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from compare(before, after, f"{place}/{number}", within=within)
    elif within and isinstance(old, float) and isinstance(new, float):
        if abs(old - new) > within:
            yield f"{place}: {old!r} -> {new!r}"
    elif old != new:
        yield f"{place}: {old!r} -> {new!r}"


def bare(value: object) -> object:
    """Texts without their figures."""
    if isinstance(value, str):
        return re.sub(r"(\B-)?\d+(\.\d+)?", "#", value)
    if isinstance(value, dict):
        return {key: bare(one) for key, one in value.items()}
    return [bare(one) for one in value] if isinstance(value, list) else value


# files --------------------------------------------------------------------------------------------


def write(path: Path, content: object) -> None:
    """YAML, or JSON for a file so called."""
    text = json.dumps(content) if path.suffix == ".json" else yaml.dump(content, Dumper=Plain)
    path.write_text(text)


class Plain(yaml.SafeDumper):
    """YAML in the given order, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        """Never refer back."""
        return True


Plain.add_representer(
    dict, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items())
)


def read(path: Path) -> dict:
    """A JSON file's content."""
    return json.loads(path.read_text())


def optional(path: Path) -> object:
    """A JSON file's content, ``None`` where there is none."""
    return read(path) if path.exists() else None


def run_section(name: str, folder: Path) -> SimpleNamespace:
    """What a section finds in an empty folder, as it would be stored."""
    content = json.loads(json.dumps(SECTIONS[name](folder)))
    return SimpleNamespace(machine=machine(), content=content)


def load_section(name: str) -> SimpleNamespace:
    """What was recorded."""
    return SimpleNamespace(**read(HERE / f"{name}.json"))


def main() -> int:
    """Record or check the sections named; the number of differences is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", choices=list(SECTIONS))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--folder", type=Path, help="keep the run folders here")
    asked = parser.parse_args()
    if asked.folder is not None and asked.folder.exists() and any(asked.folder.iterdir()):
        parser.error(f"--folder: expected a new or empty folder, got {asked.folder}")
    count = 0
    for name in asked.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if asked.folder is None else asked.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            found = run_section(name, folder)
        if asked.check:
            rows = differences(load_section(name), found)
            count += len(rows)
            sys.stdout.write("".join(f"{name}/{row}\n" for row in rows))
        else:
            text = json.dumps(vars(found), indent=1, sort_keys=True)
            text = re.sub(r"\[[\d\s,.e+-]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)
            (HERE / f"{name}.json").write_text(text + "\n")
        sys.stdout.write(f"{name}: {'checked' if asked.check else 'recorded'}\n")
    return min(count, 100)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS.parent))
    sys.exit(main())
