"""Faulty files, and commands that read them. Each command is one case; the texts are recorded."""

NET = """\
teacher:
  {model: "tailorbird.demo:digits_net", arguments: {width: 8, depth: 1}, train: {epochs: 1}}
"""
DIGITS = "data: {kind: digits, image_size: 8}\n"
TARGETS = "targets: [{name: edge, limits: {latency: 0.5x}}]\n"
SPACE = "space: cifar-compofa-mbv3-s2-w0.25\ndata: {kind: digits, image_size: 32}\n"


def device(text: str) -> str:
    """A job with this device."""
    return NET + DIGITS + f"targets: [{{name: edge, device: {text}, limits: {{latency: 0.5x}}}}]\n"


def fleet(*entries: str) -> str:
    """A fleet file of these entries."""
    return "devices:\n" + "".join(f"- {{{entry}}}\n" for entry in entries)


FILES = {
    # jobs of a model house
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "alias.yaml": "a: &a [x]\nb: [*a, *a]\n",
    "broken.yaml": "teacher: {model: x\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "no_keys.yaml": "seed: 0\n",
    "unknown.yaml": NET + DIGITS + TARGETS + "sede: 1\nrounds: 0\nhouse: {epoch: 1, pruned: -1}\n",
    "limits.yaml": NET + DIGITS + """\
targets:
- {name: t0, limits: {latency: -1}}
- {name: t1, limits: {latency: 0}}
- {name: t2, limits: {latency: "-0.5x"}}
- {name: t3, limits: {latency: .nan}}
- {name: t4, limits: {latency_ms: fast}}
- {name: t5, limits: {latncy: 3}}
- {name: t6, limits: {latency: 0.5x, latency_ms: 3}}
- {name: t7, limits: {}}
- {name: t8, limits: 3}
- {name: t9}
- {name: T0, limits: {params: 0.5x}}
- {name: a/b, limits: {params: 0.5x}}
""",
    "mixed.yaml": """\
teacher: {model: "timm:resnet18"}
donors:
  teacher: "timm:resnet18"
  odd: {model: 7}
  both: {model: "a:b", checkpoint: no.pt, train: {}}
data: {kind: digit, image_size: 4}
targets: [{name: edge, device: {kind: onnxruntim}, limits: {latncy: 0.5x}}]
house: {epochs: 0, recall: 2}
retrain: {epochs: -1, learning_rate: 0, precision: int3}
rounds: 0
candidates: none
sede: 4
""",
    "data_kind.yaml": NET + "data: digit\n" + TARGETS,
    "data_keys.yaml": NET + "data: {kind: folder, validation: 2, flop: true}\n" + TARGETS,
    "data_gone.yaml": NET + "data: {kind: folder, root: nowhere}\n" + TARGETS,
    "checkpoint.yaml": (
        "teacher: {model: 'tailorbird.demo:digits_net', checkpoint: no.pt}\n" + DIGITS + TARGETS
    ),
    "no_module.yaml": "teacher: {model: 'no_such_module:net'}\n" + DIGITS + TARGETS,
    "arguments.yaml": NET.replace("width", "widht") + DIGITS + TARGETS,
    "device_kind.yaml": device("{kind: onnxrunntime}"),
    "device_keys.yaml": device("{threads: 0, runs: 1, provder: x}"),
    "device_provider.yaml": device("{threads: 100000000}"),
    "device_module.yaml": device("'no_such_module:Device'"),
    "device_name.yaml": device("'analytic_device:FakeDevize'"),
    "device_arguments.yaml": device("{kind: 'analytic_device:FakeDevice', arguments: {a: 1}}"),
    "device_wrong.yaml": device("'analytic_device:initializers'"),
    "device_none.yaml": device("{kind: 'builtins:dict'}"),
    "not_ours.yaml": NET + DIGITS + TARGETS + "run: full\n",
    "full/file": "not a run",
    # jobs of a supernet
    "super_unknown.yaml": SPACE + "spcae: 1\nschme: deps\n",
    "super_mixed.yaml": SPACE + """\
scheme: dep
sampler: sandwhich
seed: -1
dropout: 1.0
save_steps: 0
start: no.pth
""",
    "super_space.yaml": SPACE.replace("cifar-compofa-mbv3-s2-w0.25", "cifar-compofa"),
    "super_sizes.yaml": SPACE.replace(
        "cifar-compofa-mbv3-s2-w0.25", "{name: cifar-vit-tiny, resolutions: [33]}"
    ),
    "super_scheme.yaml": SPACE + "scheme: {kind: deps, epochs: 0, delay: 1.5, tail: 1}\n",
    "super_phases.yaml": SPACE + "scheme: {kind: compofa, epochs: 0, phases: {kernel: null}}\n",
    "super_recipe.yaml": SPACE + """\
recipe: {batch_size: 1, ema: 2, batch: 3}
new_classifier: true
""",
    # fleets
    "fleet_keys.yaml": fleet("nam: a, limits: [3], threds: 2"),
    "fleet_runtime.yaml": fleet("name: a, runtime: onnxruntim, limits: [3]"),
    "fleet_limits.yaml": fleet(
        "name: a, limits: [-3, 0x, fast, {latency: 3}, {}, {size_m: 2}, '3']",
        "name: a, limits: []",
        "name: a@b, limits: [3]",
        "name: c",
        "name: d, threads: 0, limits: [1]",
    ),
    "fleet_table.yaml": fleet("name: a, latency_table: gone, limits: [20]"),
    "fleet_good.yaml": fleet("name: a, limits: [3, 0.5x]"),
    "fleet_counts.yaml": fleet("name: a, limits: [{macs: 1}, {macs: 300e6}, {params: 2}]"),
    "fleet_latency.yaml": fleet("name: a, limits: [20]",
                                "name: b, limits: [0.5x, -1, {latency: 3}]"),
    "fleet_empty.yaml": "devices: []\n",
    "fleet_faulty.yaml": fleet("name: a, latency_table: gone, limits: [20]",
                               "name: b, latency_table: empty.yaml, limits: [20]"),
    # others
    "text.onnx": "no model",
    "text.safetensors": "no weights",
    "rows.jsonl": '{"r": 160\n[1]\n',
    "wrong_rows.jsonl": '{"ks": [3], "e": [3], "d": [2], "r": 1000}\n',
}  # fmt: skip

SEARCH = "search --quiet --space compofa-mbv3-w1.2 --accuracy-predictor predictor.safetensors"

CASES = (
    *(
        f"run {name} --quiet"
        for name in FILES
        if name.endswith(".yaml") and not name.startswith(("super_", "fleet_"))
    ),
    "run none.yaml",
    "run no_keys.yaml --until never",
    "runn",
    *(f"supernet train {name} --quiet" for name in FILES if name.startswith("super_")),
    "supernet train empty.yaml",
    "supernet train no_keys.yaml",
    "supernet train none.yaml",
    "supernet evaluate none",
    "supernet evaluate full",
    "supernet evaluate none --json full",
    *(f"supernet fit none {name} --quiet" for name in FILES if name.startswith("fleet_")),
    "supernet fit none none.yaml",
    "supernet fit none empty.yaml",
    "supernet fit none fleet_good.yaml --subnets 0 --rounds 0 --candidates 0 --fine-tune -1",
    "supernet import text.safetensors new --space ofa-mbv3-w1.0",
    "supernet import none.pth new --space ofa-mbv3-w1.0",
    "supernet import none.pth new --space ofa-mbv3 --resolutions 16,x",
    "supernet import predictor.safetensors new --space cifar-compofa-mbv3-s2-w0.25",
    *(f"{SEARCH} --limits-file {name}" for name in FILES if name.startswith("fleet_")),
    f"{SEARCH} --limits-file none.yaml",
    f"{SEARCH} --limits-file empty.yaml",
    f"{SEARCH} --limits 30",
    f"{SEARCH}",
    f"{SEARCH} --limits 3e8 --limit-on latency",
    f"{SEARCH} --limits=-20,x,,nan --limit-on macs",
    f"{SEARCH} --limits 1,2,3e8 --limit-on macs",
    f"{SEARCH} --limits 3e8 --limit-on macs --strategy all-at-one",
    f"{SEARCH} --limits 3 --limits-file fleet_counts.yaml --limit-on macs --latency-table gone",
    f"{SEARCH} --limits 30 --latency-table gone",
    f"{SEARCH} --limits 30 --latency-table empty.yaml",
    f"{SEARCH} --limits 3e8 --limit-on macs --json full",
    f"{SEARCH} --limits 3e8 --limit-on macs --json text.onnx/out --csv text.onnx/out",
    f"{SEARCH} --limits 3e8 --limit-on macs --seed -1",
    f"{SEARCH} --limits 2.5e8,3e8 --limit-on macs --csv out.csv",
    f"{SEARCH.replace('predictor.', 'none.')} --limits 3e8 --limit-on macs",
    f"{SEARCH.replace('predictor.', 'text.')} --limits 3e8 --limit-on macs",
    f"{SEARCH.replace('compofa-mbv3-w1.2', 'ofa-resnet50d')} --limits 1e9 --limit-on macs",
    f"{SEARCH.replace('compofa-mbv3-w1.2', 'ofa-mbv3')} --limits 1e9 --limit-on macs",
    "describe --space compofa-mbv3-w1.2 --architectures none.jsonl",
    "describe --space compofa-mbv3-w1.2 --architectures rows.jsonl",
    "describe --space compofa-mbv3-w1.2 --architectures wrong_rows.jsonl",
    "describe --space compofa --architectures rows.jsonl",
    "measure none.onnx",
    "measure text.onnx",
    "measure text.onnx --threads 0 --runs 0 --warmup -1",
    "inspect none",
    "inspect full",
    "spaces",
)
"""Arguments of the command line, split at blanks."""
