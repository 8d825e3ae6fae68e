"""The public names: those that are promised and no others, and none costs anything at first."""

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import morlaif_hub

SOURCE = Path(morlaif_hub.__file__)


def declared() -> dict[str, str]:
    """Return what type checkers and editors see: the module of each name."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        alias.name: str(statement.module)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_all_is_what_can_be_imported() -> None:
    """What is promised, what type checkers see and what is loaded are the same names."""
    assert sorted(morlaif_hub.__all__) == sorted(declared())
    assert len(set(morlaif_hub.__all__)) == len(morlaif_hub.__all__)
    public = {name for name in dir(morlaif_hub) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(morlaif_hub, name, None))}
    assert public - modules - {"TYPE_CHECKING", "import_module"} == set(morlaif_hub.__all__)


@pytest.mark.parametrize("name", morlaif_hub.__all__)
def test_a_name_is_that_of_its_module_and_documented(name: str) -> None:
    value = getattr(morlaif_hub, name)
    assert value is getattr(import_module(declared()[name]), name)
    assert inspect.getdoc(value)
    assert name in vars(morlaif_hub)  # loaded once


def test_all_is_sorted_as_ruff_does_it() -> None:
    """Constants, then classes, then functions, each in the order of the alphabet."""

    def kind(name: str) -> int:
        return 0 if name.isupper() else 1 if name[0].isupper() else 2

    assert sorted(morlaif_hub.__all__, key=lambda n: (kind(n), n)) == morlaif_hub.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'morlaif_hub' has no attribute 'best_of_m'"):
        morlaif_hub.best_of_m  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="best_of_m"):
        from morlaif_hub import best_of_m  # type: ignore[attr-defined]  # noqa: F401


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{n.partition('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import morlaif_hub; dir(morlaif_hub); morlaif_hub.__all__",
        "from morlaif_hub import Comparison, load_constitution; load_constitution()",
    ],
)
def test_what_needs_no_model_loads_none(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "transformers", "datasets", "trl", "peft"}
