"""The commands about supernets' spaces, as a user calls them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tailorbird import cli
from tailorbird.supernet.architecture import SPACES, load_space

from .pipeline.fleets import RESOLUTIONS, SPACE, keys, write_predictor, write_table

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TAILORBIRD_DATA", ROOT / "../shared/data")) / "ofa"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a predictor and two devices' tables, entered."""
    monkeypatch.chdir(tmp_path)
    write_predictor(tmp_path / "predictor.safetensors")
    write_table(tmp_path / "tables" / "phone")
    write_table(tmp_path / "tables" / "board", scale=2)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_strategies", None)


def own_strategy(here: Path, body: str) -> None:
    """A module in the working folder with a strategy of the user's own."""
    (here / "my_strategies.py").write_text(
        "import sys\nfrom tailorbird.search.evolution import Independent\n\n"
        "class Own:\n    name = 'own'\n"
        f"    def search(self, family, limits, *, seed, progress):\n        {body}\n\n"
        "class Halted:\n    name = 'halted'\n"
    )


def call(*arguments: object):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def search(*arguments: object, space: str = SPACE, predictor: object = "predictor.safetensors"):
    return call(
        "search", "--space", space, "--accuracy-predictor", predictor, "--quiet", *arguments
    )  # fmt: skip


PHONE = ("--latency-table", "tables/phone")


def refused(done, *says: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.output.count("error: ") == 1
    for text in says:
        assert text in done.output


# what comes out -----------------------------------------------------------------------------------


def test_every_limit_gets_an_architecture_that_keeps_it(here):
    done = search(*PHONE, "--limits", "12,9,12", "--json", "new/out.json", "--csv", "out.csv")
    assert done.exit_code == 0, done.output
    found = json.loads((here / "new" / "out.json").read_text())
    assert (found["strategy"], found["seed"]) == ("all-at-once", 0)
    assert [target["limit"] for target in found["targets"]] == [12, 9, 12]  # as given
    assert all(target["latency_ms"] <= target["limit"] for target in found["targets"])
    assert found["targets"][0] == found["targets"][2]
    assert found["targets"][0]["predicted_accuracy"] >= found["targets"][1]["predicted_accuracy"]
    assert len((here / "out.csv").read_text().splitlines()) == 4
    assert "3 targets by all-at-once" in done.stdout
    assert not list(here.rglob("*.part"))


def test_what_was_found_can_be_described(here):
    search(*PHONE, "--limits", "9,12", "--json", "out.json")
    targets = json.loads((here / "out.json").read_text())["targets"]
    lines = [json.dumps(target["architecture"]) for target in targets]
    (here / "winners.jsonl").write_text("\n\n".join(lines))
    asked = ("describe", "--space", SPACE, "--architectures", "winners.jsonl", *PHONE,
             "--accuracy-predictor", "predictor.safetensors")  # fmt: skip
    told = [json.loads(line) for line in call(*asked).stdout.splitlines()]
    for row, target in zip(told, targets, strict=True):
        for figure in ("latency_ms", "macs", "params", "predicted_accuracy"):
            assert row[figure] == pytest.approx(target[figure], rel=1e-6)
        assert target["architecture"].items() <= row.items()
    done = call(*asked, "--json", "told.jsonl")
    assert done.stdout == "2 architectures: told.jsonl\n"
    assert [json.loads(line) for line in (here / "told.jsonl").read_text().splitlines()] == told


def test_counts_alone_need_no_table(here):
    done = search("--limits", "250e6,300e6", "--limit-on", "macs", "--json", "out.json")
    assert done.exit_code == 0, done.output
    [tight, loose] = json.loads((here / "out.json").read_text())["targets"]
    assert tight["macs"] <= 250e6 and loose["macs"] <= 300e6
    assert "latency_ms" not in tight


def test_shares_are_of_the_largest_network(here):
    done = search(*PHONE, "--limits", "0.9x,1x", "--json", "out.json")
    assert done.exit_code == 0, done.output
    tight, whole = json.loads((here / "out.json").read_text())["targets"]
    assert tight["limit"] == pytest.approx(0.9 * whole["limit"])
    assert tight["latency_ms"] <= tight["limit"]


def test_a_file_of_targets_serves_a_search(here):
    (here / "targets.yaml").write_text(
        "devices:\n"
        "- {name: phone, latency_table: tables/phone, limits: [0.9x]}\n"
        "- {name: board, runtime: onnxruntime, threads: 2, latency_table: tables/board}\n"
        "targets:\n"
        "- {name: small, device: board, limits: {latency_ms: 25, macs: 0.9x}}\n"
        "- {name: bare, limits: {params: 5.5e6}}\n"
    )
    done = search("--limits-file", "targets.yaml", "--json", "out.json")
    assert done.exit_code == 0, done.output
    first, second, third = json.loads((here / "out.json").read_text())["targets"]
    assert [one["device"] for one in (first, second, third)] == ["phone", "board", "bare"]
    assert second["latency_ms"] <= 25 and second["limits"].keys() == {"latency_ms", "macs"}
    assert third["params"] <= 5.5e6


def test_a_strategy_of_one_s_own(here):
    own_strategy(here, "return Independent().search(family, limits[:1], seed=seed)")
    done = search(
        "--limits", "250e6,300e6", "--limit-on", "macs", "--strategy", "my_strategies:Own"
    )
    assert done.exit_code == 0, done.output
    assert "1 targets by independent" in done.stdout
    for name, says in (
        ("Halted", "my_strategies:Halted: expected a strategy with name, search, got Halted witho"),
        ("Owm", "'my_strategies' has no 'Owm'; near matches: Own"),
    ):
        given = ("--limits", "1e9", "--limit-on", "macs", "--strategy", f"my_strategies:{name}")
        refused(search(*given), says)


def test_spaces_are_listed_with_their_sizes():
    lines = call("spaces").stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(SPACES)
    assert "compofa-mbv3-w1.2: 6.08e+03 architectures, 6 genes" in lines


def test_the_help_names_the_commands_in_full():
    text = call("--help").output
    for command in ("search", "describe", "spaces"):
        assert f"\n  {command} " in text
        assert call(command, "--help").exit_code == 0


def test_a_search_starts_without_torch():
    program = (
        "import sys, tailorbird.pipeline.search, tailorbird.config.targets, "
        "tailorbird.config.strategies, tailorbird.report.search_table; "
        "print([m for m in ('torch', 'timm', 'onnxruntime', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# bad input: the list of faults that users make ----------------------------------------------------


def test_a_table_that_lacks_layers_names_them_all(here):
    write_table(here / "short", left_out=3)
    missing = [f"160/{key}" for key in keys(160)[-3:]]
    refused(
        search("--latency-table", "short", "--limits", "30"),
        "error: short lacks 3 of the ", f" rows that {SPACE} needs: ", *missing,
    )  # fmt: skip


def test_a_predictor_of_another_width(here):
    write_predictor(here / "wide.safetensors", inputs=130)
    refused(
        search(*PHONE, "--limits", "30", predictor="wide.safetensors"),
        "0.weight: expected shape (n, 128), got (8, 130)", "choose the predictor published for",
    )  # fmt: skip


def test_a_predictor_for_another_space(here):
    refused(
        search("--limits", "1e9", "--limit-on", "macs", space="ofa-resnet50d"),
        "the MobileNetV3 predictor doesn't fit space ofa-resnet50d: expected 20 values of 'e'",
    )
    (here / "text.safetensors").write_text("no weights")
    refused(search(*PHONE, "--limits", "30", predictor="text.safetensors"), "text.safetensors: ")
    refused(search(*PHONE, "--limits", "30", predictor="none"), "can't read none: No such file")


def test_limits_below_the_reachable_name_the_lowest(here):
    done = search(*PHONE, "--limits", "1,2,40", "--json", "out.json")
    refused(done, "2 of 3 limits can't be kept; raise them", "limits[1]: latency_ms <= 2;")
    asked = float(re.search(r"the lowest found is latency_ms ([\d.]+)", done.output)[1])
    assert search(*PHONE, "--limits", asked * 1.001).exit_code == 0  # it can be reached
    assert not (here / "out.json").exists()


def test_a_predictor_that_gives_no_numbers(here):
    write_predictor(here / "huge.safetensors", scale=1e30)  # overflows; each weight is finite
    with np.errstate(all="ignore"):
        done = search(*PHONE, "--limits", "30", predictor="huge.safetensors")
    refused(done, "predicted accuracy isn't finite for ", " genomes; first: row ")


def test_an_architecture_outside_the_space(here):
    good = load_space(SPACE).architectures(np.zeros((1, 6), dtype=np.int64))[0]
    rows = [good, {**good, "r": 1000}, {**good, "d": [2, 2]}]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(
        call("describe", "--space", SPACE, "--architectures", "rows.jsonl"),
        "rows.jsonl (rows are counted from 0): row 1: r=1000, expected one of",
        "row 2: 'd': expected a list of 5 numbers, got [2, 2]",
    )
    (here / "rows.jsonl").write_text('{"r": 160\n[1]\n')
    refused(
        call("describe", "--space", SPACE, "--architectures", "rows.jsonl"),
        "rows.jsonl (line 1): expected a JSON object", "rows.jsonl (line 2): ",
    )  # fmt: skip
    (here / "rows.jsonl").write_text("\n")
    refused(call("describe", "--space", SPACE, "--architectures", "rows.jsonl"), "an empty file")


@pytest.mark.parametrize("limits", ["-20", "30,,40", "nan", "0", "x"])
def test_limits_that_are_no_positive_numbers(here, limits):
    refused(
        search(*PHONE, f"--limits={limits}"),
        "--limits: expected positive numbers or shares with commas between, such as 15,20.5,0.5x;",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "fleet.yaml"),
        ("devices: []\n", "devices (line 1): expected a list of devices, got an empty list"),
        (
            "devices: [{name: phone, latency_table: tables/fone, limits: [20]}]\n",
            "tables/fone: no such file or folder",
        ),
        (
            "devices: [{name: phone, latency_table: tables/phone, limits: [{latency: 20}]}]\n",
            "an absolute limit needs its unit, write 'latency_ms: 20'",
        ),
        (
            "devices: [{name: phone, latency_table: tables/phone, limits: [-20]}]\n",
            "devices[0].limits[0] (line 1): expected a positive number or a share of the full",
        ),
        (
            "devices: [{name: phone, limits: [20]}]\n",
            "a latency limit needs device 'phone' to have latency_table",
        ),
    ],
)
def test_faulty_fleet_files(here, text, says):
    (here / "fleet.yaml").write_text(text)
    refused(search("--limits-file", "fleet.yaml"), says)


def test_all_faulty_tables_are_told_at_once(here):
    (here / "empty.yaml").write_text("")
    (here / "fleet.yaml").write_text(
        "devices:\n"
        "- {name: a, latency_table: gone, limits: [20]}\n"
        "- {name: b, latency_table: empty.yaml, limits: [20]}\n"
    )
    refused(search("--limits-file", "fleet.yaml"), "2 problems:", "gone: no such", "empty.yaml: ")


def test_names_that_nothing_has(here):
    for done, *says in (
        (search(*PHONE, "--limits", "30", space="ofa-mbv3"), "space: expected one of", SPACE),
        (
            search(*PHONE, "--limits", "30", "--strategy", "all-at-one"),
            "--strategy: unknown name 'all-at-one'; did you mean 'all-at-once'?",
        ),
        (
            search(*PHONE, "--limits", "30", "--limit-on", "latency"),
            "--limit-on: expected one of latency_ms, macs, params, size_mb, peak_memory_mb, "
            "images_per_second, got",
        ),
        (call("describe", "--space", "x", "--architectures", "rows"), "rows: can't be read"),
    ):
        refused(done, *says)


def test_options_that_do_not_go_together(here):
    (here / "fleet.yaml").write_text("devices: [{name: a, limits: [{macs: 3e8}]}]\n")
    refused(search(*PHONE), "give either --limits or --limits-file")
    refused(search("--limits", "30"), "--limits on latency_ms need --latency-table")
    rate = ("--limit-on", "images_per_second")
    refused(search("--limits", "30", *rate), "--limits on images_per_second need --latency-table")
    refused(
        search(*PHONE, "--limits", "0.9", "--limit-on", "accuracy"),
        "--limit-on accuracy: a search is for the most accurate networks within limits of cost",
    )
    refused(
        search(*PHONE, "--limits", "3", "--limits-file", "fleet.yaml", "--limit-on", "macs"),
        "3 problems:", "give either", "--latency-table: with --limits-file", "--limit-on: with",
    )  # fmt: skip


def test_places_that_cannot_be_written_are_found_before_the_search(here):
    own_strategy(here, "raise AssertionError('the search has begun')")
    begun = ("--strategy", "my_strategies:Own")
    (here / "file").write_text("in the way")
    for option in ("--json", "--csv", "--plot"):
        done = search(*PHONE, "--limits", "30", option, "file/out", *begun)
        refused(done, "can't write file/out: ", "nothing has been searched yet")
        refused(search(*PHONE, "--limits", "30", option, "tables", *begun), "got the folder tables")
    refused(
        search(*PHONE, "--limits", "30", "--json", "same", "--csv", "same", *begun),
        "--csv and --json: expected different files, got same twice",
    )
    (here / "rows.jsonl").write_text("{}\n")
    refused(
        call("describe", "--space", SPACE, "--architectures", "rows.jsonl", "--json", "file/out"),
        "can't write file/out: ",
    )
    assert (here / "file").read_text() == "in the way"
    assert not list(here.rglob("*.part"))


# ctrl-C -------------------------------------------------------------------------------------------


def test_ctrl_c_before_anything_is_found_writes_nothing(here):
    own_strategy(here, "raise KeyboardInterrupt")
    (here / "out.json").write_text("older")
    stopped = ("--strategy", "my_strategies:Own")
    done = search(*PHONE, "--limits", "30", "--json", "out.json", *stopped)
    assert done.exit_code == 130
    assert "stopped before there was anything to write" in done.stderr
    assert (here / "out.json").read_text() == "older"


@pytest.mark.skipif(os.name != "posix", reason="signals as posix has them")
def test_ctrl_c_writes_the_best_so_far(here):
    """A search that would take minutes, in a process of its own, is stopped under way."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tailorbird.cli import app; app()"
    )
    own_strategy(
        here,
        "searched = Independent()\n"
        "        print('begun', file=sys.stderr, flush=True)\n"
        "        return searched.search(family, limits, seed=seed, progress=progress)",
    )
    limits = ",".join(f"{9 + 0.02 * step:g}" for step in range(200))
    running = subprocess.Popen(
        [sys.executable, "-c", program, "--verbose", "search", "--space", SPACE, *PHONE,
         "--limits", limits,
         "--accuracy-predictor", "predictor.safetensors", "--strategy", "my_strategies:Own",
         "--json", "out.json"],
        cwd=here, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        first = running.stderr.readline()
        time.sleep(0.5)  # some of the limits have an architecture by then
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert first == "begun\n"
    assert running.returncode == 130
    assert "stopped early, the best so far: 200 targets" in " ".join(out.split())
    found = json.loads((here / "out.json").read_text())
    assert found["stopped"] is True
    assert all(target["latency_ms"] <= target["limit"] for target in found["targets"])
    assert len(found["targets"]) == 200
    assert not list(here.rglob("*.part"))


# the documents ------------------------------------------------------------------------------------


def fenced(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SEARCHING = [
    body
    for path in (ROOT / "README.md", ROOT / "docs" / "howto.md")
    for body in fenced(path, "sh")
    if re.search(r"tailorbird (search|describe) ", body)
]


def tell(here: Path) -> None:
    """The files that the documents' commands and snippets read, made up."""
    space = load_space(SPACE, resolutions=RESOLUTIONS)
    genomes = space.space.sample(60, np.random.default_rng(0))
    rows = [
        {**architecture, "top1": 70 + genome.sum() / 5, "ms": 10 + float(genome.sum())}
        for architecture, genome in zip(space.architectures(genomes), genomes, strict=True)
    ]
    lines = "".join(json.dumps(row, default=float) + "\n" for row in rows)
    (here / "pairs.jsonl").write_text(lines)
    (here / "timed.jsonl").write_text(lines)
    (here / "architectures.jsonl").write_text(lines)
    (fleet,) = fenced(ROOT / "docs" / "howto.md", "yml")
    (here / "fleet.yaml").write_text(fleet)


def fitting(text: str) -> str:
    """A document's text with the space that the made-up files belong to."""
    return text.replace("ofa-mbv3-w1.2", SPACE)


def test_the_documents_show_searches():
    assert len(SEARCHING) >= 3


@pytest.mark.parametrize("body", SEARCHING, ids=lambda body: body.split("\n")[0][:40])
def test_commands_of_the_documents_run(here, body):
    tell(here)
    for command in fitting(body).replace("\\\n", " ").strip().splitlines():
        name, *arguments = shlex.split(command, comments=True)
        assert name == "tailorbird"
        done = call(*arguments)
        assert done.exit_code == 0, (command, done.output)


SNIPPETS = [
    body
    for path in (ROOT / "README.md", ROOT / "docs" / "howto.md")
    for body in fenced(path, "python")
    if "load_space" in body and "build_supernet" not in body  # test_docs runs those that train
]


@pytest.mark.parametrize("body", SNIPPETS, ids=lambda body: f"{len(body)}")
def test_snippets_of_the_documents_run(here, body):
    tell(here)
    exec(compile(fitting(body), "snippet", "exec"), {"__name__": "snippet"})


# the real files -----------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("golden", "space", "options", "same"),
    [
        (
            "mbv3_predictor_note10",
            "ofa-mbv3-w1.2",
            ("mbv3_accuracy_predictor.safetensors", "--latency-table", "latency_tables/note10"),
            {"predicted_top1": ("predicted_accuracy", 1.0), "note10_ms": ("latency_ms", 1.0)},
        ),
        (
            "resnet50d_predictor",
            "ofa-resnet50d",
            ("resnet50d_accuracy_predictor.safetensors",),
            {"predicted_top1": ("predicted_accuracy", 1.0), "mflops": ("macs", 1e-6)},
        ),
    ],
)
def test_described_as_the_original_says(tmp_path, monkeypatch, golden, space, options, same):
    if not DATA.exists():
        pytest.skip(f"real data missing: no ofa in TAILORBIRD_DATA ({DATA.parent})")
    out = tmp_path.absolute() / "out.jsonl"
    monkeypatch.chdir(DATA)
    file = f"goldens/{golden}.jsonl"
    done = call("describe", "--space", space, "--architectures", file, "--json", out,
                "--accuracy-predictor", *options)  # fmt: skip
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in out.read_text().splitlines()]
    golds = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for row, gold in zip(told, golds, strict=True):
        for name, (own, scale) in same.items():
            assert row[own] * scale == pytest.approx(gold[name], abs=1e-4)


@pytest.mark.data
def test_a_fleet_of_two_real_devices(tmp_path):
    if not DATA.exists():
        pytest.skip(f"real data missing: no ofa in TAILORBIRD_DATA ({DATA.parent})")
    tables = (DATA / "latency_tables").absolute()
    (tmp_path / "fleet.yaml").write_text(
        "devices:\n"
        f"- {{name: note10, latency_table: {tables}/note10, limits: [15, 30, 60]}}\n"
        f"- name: jetson\n  latency_table: {tables}/jetson_cpu\n"
        "  limits: [1200, {latency_ms: 2500, macs: 400e6}]\n"
    )
    done = search(
        "--limits-file", tmp_path / "fleet.yaml", "--json", tmp_path / "out.json",
        "--plot", tmp_path / "front.png",
        space="ofa-mbv3-w1.2", predictor=DATA / "mbv3_accuracy_predictor.safetensors",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    targets = json.loads((tmp_path / "out.json").read_text())["targets"]
    assert [target["device"] for target in targets] == ["note10"] * 3 + ["jetson"] * 2
    assert all(target["latency_ms"] <= target["limit"] for target in targets[:4])
    assert targets[4]["latency_ms"] <= 2500 and targets[4]["macs"] <= 400e6
    assert [round(target["predicted_accuracy"], 2) for target in targets[:3]] == [0.78, 0.83, 0.85]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
