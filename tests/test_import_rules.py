"""Rules of the code base that no linter knows: who imports whom, and what is never read."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tailorbird"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path.read_text()
    for path in sorted(SOURCE.rglob("*.py"))
}
TESTS = {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))
}
SCRIPTS = {path.name: path.read_text() for path in sorted((ROOT / "bench").rglob("*.py"))}

CORE = {
    "asking",
    "changes",
    "copying",
    "device",
    "errors",
    "factories",
    "files",
    "space",
    "family",
    "targets",
    "task",
    "progress",
    "quiet",
    "threads",
}
MAY = {"pipeline": {"cli", "__init__"}, "config": {"cli"}, "cli": {"__main__"}, "demo": {"cli"}}
"""Package at the top -> the only ones that may import it; no package is exempt."""

FORBIDDEN = {
    "search": {"graph", "house", "supernet"},
    "graph": {"search"},
    "house": {"search", "supernet"},
    "supernet": {"search", "house"},
    "train": {"house", "search"},
    "measure": {"house", "search"},
    "export": {"house", "search"},
}
"""Package -> packages that it must not import, beside those that `MAY` keeps to others."""

PARTS = {name.partition(".")[0] for name in FILES} | MAY.keys() | FORBIDDEN.keys()

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RESEEDING = {
    "torch.manual_seed",
    "torch.seed",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}
RESTORING = ("fork_rng", "set_state", "setstate", "set_rng_state")
UNSAFE_YAML = {"unsafe_load", "full_load", "load_all", "unsafe_load_all", "full_load_all"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}
PATCHING = {"setattr", "delattr", "setitem", "delitem"}
TARGETS = {"target", "in_dict", "dic"}
"""Arguments by which patches are told what to change."""


def imported(module: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import, relative ones resolved, those in functions included."""
    package = ["tailorbird", *module.split(".")][:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{name.name}") for name in node.names)


def import_faults(module: str, text: str) -> list[str]:
    """Imports that the module's place in the layout forbids."""
    place = module.partition(".")[0]
    faults = []
    for line, name in imported(module, text):
        root, _, rest = name.partition(".")
        part = rest.partition(".")[0]
        if root != "tailorbird" or not part or part == place:
            continue
        if place in CORE:
            wrong = part not in CORE and part in PARTS
        else:
            wrong = part in FORBIDDEN.get(place, set()) or place not in MAY.get(part, {place})
        if wrong:
            faults.append(f"{module}:{line} must not import tailorbird.{part}")
    return sorted(set(faults))


def files_imported(module: str, text: str, files: Collection[str]) -> set[str]:
    """Those of ``files`` that a file imports, in functions and for types too; packages by name."""
    found = set()
    names = [name for _, name in imported(module, text)]
    longer = {name.rpartition(".")[0] for name in names}
    for name in names:
        inside = name.removeprefix("tailorbird").lstrip(".")
        if name in longer and inside not in files:
            continue  # the package of `from package import file`, where it is no file itself
        while inside and not {inside, f"{inside}.__init__"} & set(files):
            inside = inside.rpartition(".")[0]
        if name.startswith("tailorbird"):
            found.add(inside if inside in files else f"{inside}.__init__".lstrip("."))
    return found - {module}


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, each in alphabetical order (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            place = stack.index(node)
            if len(stack) - place > 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def is_true(call: ast.Call, name: str) -> bool:
    return any(
        keyword.arg == name
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
        for keyword in call.keywords
    )


def safe_loaders(tree: ast.AST) -> set[str]:
    """YAML loaders that are safe: the library's and those derived from them in this file."""
    known = set(SAFE_LOADERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and known & {
            dotted(base).rpartition(".")[2] for base in node.bases
        }:
            known.add(node.name)
    return known


def call_fault(call: ast.Call, loaders: set[str]) -> str | None:
    """What is wrong with a call, if anything."""
    name = dotted(call.func)
    if name in ("eval", "exec", "__import__"):
        return f"{name} runs text as code"
    if name == "torch.load" and not is_true(call, "weights_only"):
        return "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and is_true(call, "allow_pickle"):
        return "numpy.load with pickle"
    if name.startswith("yaml.") and name.partition(".")[2] in UNSAFE_YAML:
        return f"{name} instead of a safe loader"
    if name == "yaml.load":
        given = [keyword.value for keyword in call.keywords if keyword.arg == "Loader"]
        given += call.args[1:2]
        if not given or dotted(given[0]).rpartition(".")[2] not in loaders:
            return "yaml.load without a safe loader"
    return None


def reseeding_faults(module: str, tree: ast.Module) -> list[str]:
    """Calls that reseed a global generator where nobody in the file puts its state back.

    A function is safe if it borrows the state itself, or is private and only called by safe ones.
    """
    calls = {node: dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    safe: set[ast.AST] = set()
    grown = True
    while grown:
        before = len(safe)
        for function in functions:
            callers = [call for call, name in calls.items() if name == function.name]
            borrowed = any(calls.get(node, "").endswith(RESTORING) for node in ast.walk(function))
            inner = function.name.startswith("_") and callers and safe.issuperset(callers)
            if borrowed or inner:
                safe.update(ast.walk(function))
        grown = len(safe) > before
    return [
        f"{module}:{call.lineno} {name} reseeds a global generator and leaves it so"
        for call, name in calls.items()
        if name in RESEEDING and call not in safe
    ]


def only_its_errors(tree: ast.Module, name: str) -> bool:
    """Whether a module is imported plainly, and only for the errors that it defines."""
    plain = all(
        node.module != name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    ) and not any(
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == name
    )
    dots = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    uses = [node.attr for node in dots if dotted(node.value) == name]
    names = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))
    return plain and 0 < names == len(uses) and all(use.endswith("Error") for use in uses)


def safety_faults(module: str, text: str) -> list[str]:
    """Imports and calls that read code from data, or reseed what others draw from."""
    tree = ast.parse(text)
    loaders = safe_loaders(tree)
    harmless = only_its_errors(tree, "pickle")
    roots = {(line, name.partition(".")[0]) for line, name in imported(module, text)}
    faults = [
        f"{module}:{line} imports {root}"
        for line, root in sorted(roots)
        if root in UNSAFE_MODULES and not (harmless and root == "pickle")
    ]
    for node in ast.walk(tree):
        fault = call_fault(node, loaders) if isinstance(node, ast.Call) else None
        if fault:
            faults.append(f"{module}:{node.lineno} {fault}")
    return [*faults, *reseeding_faults(module, tree)]


def docstring_faults(module: str, text: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    tree = ast.parse(text)
    faults = [] if ast.get_docstring(tree) else [f"{module}: no docstring"]
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [(module, tree)]
    while scopes:
        where, scope = scopes.pop()
        for node in scope.body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            decorators = {dotted(item).rpartition(".")[2] for item in node.decorator_list}
            if node.name.startswith("_") or decorators & {"overload", "override", "setter"}:
                continue
            if not ast.get_docstring(node):
                faults.append(f"{where}.{node.name}:{node.lineno} has no docstring")
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{where}.{node.name}", node))
    return faults


def names_of_ours(tree: ast.Module) -> set[str]:
    """What a file calls modules and members of the package, imported anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            ours = not node.level and (node.module or "").partition(".")[0] == "tailorbird"
            found |= {alias.asname or alias.name for alias in node.names if ours}
        elif isinstance(node, ast.Import):
            found |= {
                alias.asname or "tailorbird"
                for alias in node.names
                if alias.name.partition(".")[0] == "tailorbird"
            }
    return found


def patch_faults(module: str, text: str) -> list[str]:
    """Patches of what the package holds: set or deleted on a name of ours, or named by its path.

    `setattr`, `delattr`, `setitem`, `delitem` and `mock.patch` of any kind are patches, and so is
    an assignment to ours. What ours has merely imported (``ours.os``) counts as ours too.
    """
    tree = ast.parse(text)
    ours = names_of_ours(tree)

    def is_ours(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str) and node.value.startswith("tailorbird.")
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return isinstance(node, ast.Name) and node.id in ours

    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            patches = name.rpartition(".")[2] in PATCHING or "patch" in name.split(".")
            given = [*node.args[:1], *(key.value for key in node.keywords if key.arg in TARGETS)]
            if patches and any(map(is_ours, given)):
                lines.add(node.lineno)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            one = isinstance(node, ast.AugAssign | ast.AnnAssign)
            targets = [node.target] if one else node.targets
            if any(not isinstance(each, ast.Name) and is_ours(each) for each in targets):
                lines.add(node.lineno)
    return [f"{module}:{line} patches a module of ours" for line in sorted(lines)]


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_layout(module):
    assert import_faults(module, FILES[module]) == []


def test_no_files_import_each_other_in_a_circle():
    graph = {module: files_imported(module, text, FILES) for module, text in FILES.items()}
    assert sum(map(len, graph.values())) > len(graph)
    assert circles(graph) == []


@pytest.mark.parametrize("module", [*FILES, *SCRIPTS])
def test_nothing_reads_code_from_data(module):
    assert safety_faults(module, (FILES | SCRIPTS)[module]) == []


@pytest.mark.parametrize("module", FILES)
def test_public_names_are_documented(module):
    assert docstring_faults(module, FILES[module]) == []


def test_no_file_is_a_grab_bag():
    bags = [name for name in FILES if name.split(".")[-1] in {"utils", "helpers", "util", "misc"}]
    assert bags == []


@pytest.mark.parametrize(
    ("module", "text", "part"),
    [
        ("space", "from tailorbird.graph.trace import trace", "graph"),
        ("search.exact", "def f():\n    import tailorbird.house.store", "house"),
        ("graph.blocks", "from tailorbird import search", "search"),
        ("graph.blocks", "from ..search import exact", "search"),
        ("house.score", "from tailorbird.supernet import family", "supernet"),
        ("supernet.family", "from tailorbird.house.family import HouseFamily", "house"),
        ("train.retrain", "from tailorbird.config import build", "config"),
        ("report.table", "from tailorbird.pipeline import execute", "pipeline"),
        ("pipeline.search", "from tailorbird.config.targets import load_targets", "config"),
        ("pipeline.execute", "from tailorbird.cli import app", "cli"),
        ("config.house_job", "from tailorbird.pipeline import Job", "pipeline"),
        ("__init__", "from tailorbird.config import house_job", "config"),
        ("demo", "from tailorbird.pipeline import Job", "pipeline"),
        ("factories", "from tailorbird.models import load_model", "models"),
    ],
)
def test_a_forbidden_import_is_found(module, text, part):
    faults = import_faults(module, text)
    assert len(faults) == 1
    assert faults[0].endswith(f"must not import tailorbird.{part}")


def test_a_circle_of_files_is_found():
    texts = {
        "a": "def f():\n    from tailorbird.b.c import g",
        "b.__init__": "",
        "b.c": "if TYPE_CHECKING:\n    from tailorbird.b import d",
        "b.d": "import tailorbird.a",
        "e": "from tailorbird import a, b\nfrom tailorbird import e",
    }
    graph = {module: files_imported(module, text, texts) for module, text in texts.items()}
    assert graph == {
        "a": {"b.c"},
        "b.__init__": set(),
        "b.c": {"b.d"},
        "b.d": {"a"},
        "e": {"a", "b.__init__"},
    }
    assert circles(graph) == [["a", "b.c", "b.d"]]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("targets", "from tailorbird.errors import ConfigError"),
        ("search.front", "from . import exact\nfrom tailorbird.family import AdditiveProblem"),
        (
            "cli.house",
            "from tailorbird.config import house_job\nfrom tailorbird.search import exact",
        ),
        ("__main__", "from tailorbird.cli import app"),
        ("pipeline.execute", "from tailorbird.pipeline.job import Job"),
        ("export.bundle", "from tailorbird.graph.serial import save_module"),
    ],
)
def test_an_allowed_import_passes(module, text):
    assert import_faults(module, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle\npickle.loads(b'')\npickle.UnpicklingError",
        "import pickle\nf = pickle\npickle.UnpicklingError",
        "import pickle as p\np.loads(b'')",
        "from joblib import load",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import yaml\nyaml.load('a')",
        "import yaml\nyaml.load('a', Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "eval('1')",
        "import torch\ntorch.manual_seed(0)",
        "import random\ndef f():\n    random.seed(1)\n    return random.getstate()",
    ],
)
def test_an_unsafe_read_is_found(text):
    assert len(safety_faults("config", text)) == 1


def test_a_safe_read_passes():
    text = (
        "import pickle, torch, yaml\npickle.UnpicklingError\n"
        "torch.load('a', weights_only=True)\nyaml.safe_load('a')\n"
        "class Strict(yaml.SafeLoader): pass\nyaml.load('a', Loader=Strict)\n"
        "torch.Generator().manual_seed(0)\nmodel.eval()\n"
        "def f():\n    with torch.random.fork_rng():\n        torch.manual_seed(0)"
    )
    assert safety_faults("config", text) == []


def test_a_missing_docstring_is_found():
    text = "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self): pass\n    def _g(self): pass"
    assert docstring_faults("module", text) == ["module.A.f:4 has no docstring"]


@pytest.mark.parametrize("module", TESTS)
def test_no_test_patches_what_is_ours(module):
    assert patch_faults(module, TESTS[module]) == []


@pytest.mark.parametrize(
    "text",
    [
        "from tailorbird import doctor\nmonkeypatch.setattr(doctor, '_gpu', None)",
        "from tailorbird import doctor as d\nmonkeypatch.setattr(d.tempfile, 'mkdtemp', None)",
        "import tailorbird.doctor\nmonkeypatch.delattr(tailorbird.doctor, '_gpu')",
        "import tailorbird.doctor as d\nmonkeypatch.setitem(d.__dict__, 'BUSY', 1)",
        "from tailorbird.space import Space\nsetattr(Space, 'size', 1)",
        "from tailorbird.space import Space\nSpace.size = 1",
        "from tailorbird import doctor\ndoctor.PACKAGES[0] = doctor.BUSY = 'numpy'",
        "from tailorbird import doctor\ndel doctor.BUSY",
        "def f(monkeypatch):\n    from tailorbird import doctor as d\n    d.BUSY += 1",
        "from tailorbird import doctor\nwith mock.patch.object(doctor, 'BUSY', 1): pass",
        "from tailorbird import doctor\nwith patch.multiple(target=doctor, BUSY=1): pass",
        "@mock.patch('tailorbird.doctor.BUSY', 1)\ndef test(): pass",
        "monkeypatch.setattr('tailorbird.doctor.BUSY', 1)",
        "with pytest.MonkeyPatch.context() as m:\n    m.setattr('tailorbird.doctor.BUSY', 1)",
    ],
)
def test_a_patch_of_ours_is_found(text):
    assert len(patch_faults("tests/test_a.py", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import os\nmonkeypatch.setattr(os, 'fsync', None)",
        "monkeypatch.setitem(sys.modules, 'pymoo', None)",
        "monkeypatch.setattr('os.fsync', None)",
        "from tailorbird.space import Space\nspace = Space(())\nspace.note = 1",
        "from tailorbird import doctor\nfound = doctor.BUSY\nmonkeypatch.chdir(doctor.BUSY)",
        "from tests.fakes import FakeDevice\nFakeDevice.calls = 0",
    ],
)
def test_a_patch_of_others_passes(text):
    assert patch_faults("tests/test_a.py", text) == []
