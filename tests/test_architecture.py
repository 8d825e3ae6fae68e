"""The house rules, executable: which module may import which, and how large things may get.

Each rule is a function from a package's folder to the faults that it finds there. It is run on this
package, where it must find none, and on a small tree with one fault, which it must name: a rule
that finds nothing anywhere would be worth nothing.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "morlaif_hub"

# The way of the data: a module may import from its own place and from earlier ones, never from
# later ones. A new module has to be placed here.
LAYERS = [
    "errors",
    "plugins",
    "statistics",
    "metrics",
    "figures",
    "hub",
    "workspace",
    "stages",
    "progress",
    "principles",
    "messages",
    "sources",
    "shapes",
    "distinct",
    "comparisons",
    "models",
    "sampling",
    "judges",
    "feedback",
    "bank",
    "scoring",
    "scalarizers",
    "preference_models",
    "weights",
    "rewards",
    "policies",
    "steering",
    "evaluation",
    "publish",
    "quickstart",
    "cli",
    "__main__",
]
WITH_A_MODEL = set(LAYERS[LAYERS.index("models") :])

# Who alone may import what.
FENCES = {
    "evaluate": {"metrics"},
    "gradio": set(),  # only spaces/, which is no part of the package
    "huggingface_hub": {"hub"},
    "openai": {"judges"},
    "peft": {"bank", "preference_models", "policies"},
    "torch": WITH_A_MODEL,
    "transformers": WITH_A_MODEL,
    "trl": {"preference_models", "policies"},
}
# What a place must not know although it lies earlier.
BLIND = {"scalarizers": {"hub", "models", "judges", "feedback", "bank"}}

MODULE_LINES = 400
FUNCTION_LINES = 60


class Import(NamedTuple):
    """One imported module or name, as a dotted path, and where."""

    target: str
    level: int
    at_import_time: bool
    where: str


def modules(package: Path) -> dict[str, Path]:
    """Return the package's modules by dotted name; a folder's name stands for its `__init__`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path, path: Path) -> Iterator[Import]:
    """Yield every import of a file, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        where = f"{path.relative_to(package)}:{node.lineno}"
        source = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        for alias in node.names:
            yield Import(source + alias.name, level, node not in late, where)


def place(package: Path, path: Path) -> str:
    """Return the layer that a file belongs to: the first part of its path."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def layers(package: Path) -> list[str]:
    """Find modules without a place, and imports that go back."""
    faults = []
    for path in modules(package).values():
        own = place(package, path)
        if own == "__init__":
            continue
        if own not in LAYERS:
            faults.append(f"{path.relative_to(package)} has no place in LAYERS")
            continue
        allowed = set(LAYERS[: LAYERS.index(own) + 1]) - BLIND.get(own, set()) | {"__version__"}
        for imported in imports(package, path):
            first, _, rest = imported.target.partition(".")
            target = rest.split(".")[0]
            if first == package.name and target not in allowed:
                faults.append(f"{imported.where} must not import {imported.target}")
    return faults


def fences(package: Path) -> list[str]:
    """Find imports of a library outside the places that may use it."""
    faults = []
    for path in modules(package).values():
        for imported in imports(package, path):
            library = imported.target.split(".")[0]
            if library in FENCES and place(package, path) not in FENCES[library]:
                faults.append(f"{imported.where} must not import {library}")
    return faults


def relative_imports(package: Path) -> list[str]:
    """Find imports that start with a dot."""
    return [
        f"{imported.where} has a relative import"
        for path in modules(package).values()
        for imported in imports(package, path)
        if imported.level
    ]


def cycles(package: Path) -> list[str]:
    """Find modules that import each other when they are imported, directly or round a corner."""
    known = modules(package)
    graph = {
        name: {
            target
            for imported in imports(package, path)
            if imported.at_import_time
            # `from package import module` names a module, `from module import name` a name.
            for target in (imported.target, imported.target.rpartition(".")[0])
            if target in known and target not in (name, package.name)
        }
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"import cycle: {' <- '.join(error.args[1])}"]
    return []


def long_modules(package: Path) -> list[str]:
    """Find modules with too many lines."""
    faults = []
    for path in modules(package).values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            faults.append(f"{path.relative_to(package)} has {lines} lines, over {MODULE_LINES}")
    return faults


def long_functions(package: Path) -> list[str]:
    """Find functions with too many lines, signature and docstring included."""
    faults = []
    for path in modules(package).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    where = f"{path.relative_to(package)}:{node.lineno}"
                    faults.append(f"{where} {node.name} has {lines} lines, over {FUNCTION_LINES}")
    return faults


def without_docstring(package: Path) -> list[str]:
    """Find public modules, classes, functions and methods without a docstring."""
    faults = []
    for path in modules(package).values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in [("the module", tree), *_public(tree, "")]:
            if not ast.get_docstring(node):
                faults.append(f"{path.relative_to(package)}: {name} has no docstring")
    return faults


Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _public(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Documented]]:
    for node in parent.body:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        if any(ast.unparse(d) in ("overload", "override") for d in node.decorator_list):
            continue  # documented by what it stands for
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node, f"{prefix}{node.name}.")


class Offender(NamedTuple):
    """Files, by name, of a package with one fault, and how its rule has to name it."""

    files: dict[str, str]
    fault: str


RULES: dict[Callable[[Path], list[str]], list[Offender]] = {
    layers: [
        Offender({"utils.py": ""}, "utils.py has no place in LAYERS"),
        Offender(
            {"bank/bank.py": "from morlaif_hub.scalarizers import linear"},
            "bank/bank.py:1 must not import morlaif_hub.scalarizers.linear",
        ),
        Offender(
            {"models/formats.py": "def late():\n    import morlaif_hub.judges.base"},
            "models/formats.py:2 must not import morlaif_hub.judges.base",
        ),
        Offender(
            {"hub/client.py": "from morlaif_hub import models"},
            "hub/client.py:1 must not import morlaif_hub.models",
        ),
        Offender(  # the public names are loaded from every layer
            {"hub/client.py": "from morlaif_hub import PMBank"},
            "hub/client.py:1 must not import morlaif_hub.PMBank",
        ),
        Offender(
            {"hub/client.py": "import morlaif_hub"}, "hub/client.py:1 must not import morlaif_hub"
        ),
        Offender(
            {"scalarizers.py": "from morlaif_hub.bank.bank import PMBank"},
            "scalarizers.py:1 must not import morlaif_hub.bank.bank.PMBank",
        ),
    ],
    fences: [
        Offender(
            {"rewards.py": "def late():\n    from trl import GRPOTrainer"},
            "rewards.py:2 must not import trl",
        ),
        Offender(
            {"cli/demo.py": "import gradio.themes as themes"},
            "cli/demo.py:1 must not import gradio",
        ),
        Offender({"bank/bank.py": "import evaluate"}, "bank/bank.py:1 must not import evaluate"),
        Offender({"statistics.py": "import torch"}, "statistics.py:1 must not import torch"),
        Offender(
            {"publish.py": "from huggingface_hub import HfApi"},
            "publish.py:1 must not import huggingface_hub",
        ),
    ],
    relative_imports: [
        Offender({"bank/bank.py": "from . import engine"}, "bank/bank.py:1 has a relative import"),
        Offender(
            {"bank/bank.py": "from ..errors import E"}, "bank/bank.py:1 has a relative import"
        ),
    ],
    cycles: [
        Offender(
            {
                "bank/a.py": "from morlaif_hub.bank import b",
                "bank/b.py": "if True:\n    from morlaif_hub.bank.c import name",
                "bank/c.py": "import morlaif_hub.bank.a",
            },
            "import cycle: ",
        ),
    ],
    long_modules: [
        Offender({"errors.py": "\n" * 401}, "errors.py has 401 lines, over 400"),
    ],
    long_functions: [
        Offender(
            {"errors.py": "class A:\n    async def f(self):\n" + "        pass\n" * 60},
            "errors.py:2 f has 61 lines, over 60",
        ),
    ],
    without_docstring: [
        Offender({"errors.py": "x = 1"}, "errors.py: the module has no docstring"),
        Offender(
            {"errors.py": '"""Doc."""\ndef public(): pass'}, "errors.py: public has no docstring"
        ),
        Offender(
            {"errors.py": '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): pass'},
            "errors.py: A.f has no docstring",
        ),
    ],
}


def _named(rule: Callable[[Path], list[str]]) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", RULES, ids=_named)
def test_the_package_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(PACKAGE) == []


@pytest.mark.parametrize(
    ("rule", "offender"),
    [(rule, offender) for rule, offenders in RULES.items() for offender in offenders],
    ids=lambda value: _named(value) if callable(value) else "",
)
def test_the_rule_sees_an_offender(
    rule: Callable[[Path], list[str]], offender: Offender, tmp_path: Path
) -> None:
    package = tmp_path / PACKAGE.name
    for name, text in {"__init__.py": '"""A package."""', **offender.files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    faults = rule(package)
    assert len(faults) == 1
    assert faults[0].startswith(offender.fault)


def test_what_the_rules_allow(tmp_path: Path) -> None:
    """A late import within a folder makes no cycle; what is private needs no docstring."""
    package = tmp_path / PACKAGE.name
    (package / "bank").mkdir(parents=True)
    (package / "bank" / "a.py").write_text(
        '"""A."""\nimport peft\nfrom morlaif_hub import __version__, errors\n'
        "from morlaif_hub.bank.b import B\nfrom morlaif_hub.errors import OptionError\n"
        "def _private(): pass\n"
    )
    (package / "bank" / "b.py").write_text(
        '"""B."""\nclass B:\n    """B."""\n    def _late(self):\n'
        "        from morlaif_hub.bank.a import A\n"
    )
    assert [fault for rule in RULES for fault in rule(package)] == []


def test_the_lists_name_what_exists() -> None:
    """A layer that nothing fills would hide a mistake."""
    there = {place(PACKAGE, path) for path in modules(PACKAGE).values()}
    assert set(LAYERS) <= there


def heavy_modules(statement: str, *, path: Path) -> list[str]:
    """Return which of the heavy libraries a fresh interpreter has loaded after a statement."""
    code = (
        f"import sys; {statement}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("module", ["morlaif_hub", "morlaif_hub.cli"])
def test_importing_loads_neither_torch_nor_transformers(module: str) -> None:
    """So that `morlaif-hub --help` answers at once."""
    assert heavy_modules(f"import {module}", path=ROOT) == []


def test_a_heavy_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "offender.py").write_text("import torch")
    assert heavy_modules("import offender", path=tmp_path) == ["torch"]


def private_imports(folder: Path) -> list[str]:
    """Find imports from the package that are not of its public names.

    Public are what `morlaif_hub` itself offers and the functions of `morlaif_hub.scalarizers`.
    """
    faults = []
    for path in sorted(folder.rglob("*.py")):
        for imported in imports(folder, path):
            first, _, rest = imported.target.partition(".")
            name = rest.removeprefix("scalarizers.")
            if first == PACKAGE.name and ("." in name or name.startswith("_")):
                faults.append(f"{imported.where} must not import {imported.target}")
    return faults


def test_spaces_use_public_names_only() -> None:
    assert private_imports(ROOT / "spaces") == []


@pytest.mark.parametrize(
    ("statement", "private"),
    [
        ("from morlaif_hub import PMBank, best_of_n", False),
        ("from morlaif_hub.scalarizers import SCALARIZERS", False),
        ("from morlaif_hub.bank.bank import PMBank", True),
        ("import morlaif_hub.steering as steering\nimport morlaif_hub.bank.engine", True),
        ("from morlaif_hub import _lazy", True),
    ],
)
def test_private_imports_are_seen(statement: str, private: bool, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(statement)
    assert bool(private_imports(tmp_path)) == private
