"""What is written about the project is true: commands, options and names exist."""

import ast
import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest

import morlaif_hub
from morlaif_hub.cli import COMMANDS, cli, every_command
from morlaif_hub.judges.base import JUDGES

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
# A command begins a line, follows a quote, a backtick or a tag, or has a hyphen in its name;
# elsewhere `morlaif-hub` is the package, and a word of prose may follow.
MENTION = re.compile(
    r"(?:(?:^|[`'\">])morlaif-hub ([a-z][a-z-]*)|morlaif-hub ([a-z]+-[a-z-]+))([^`\n;:<]*)",
    re.MULTILINE,
)


def generator() -> ModuleType:
    spec = spec_from_file_location("generate_cli", ROOT / "docs/generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


def options(name: str) -> set[str]:
    whole = [made for typed, made in every_command().items() if typed.split()[0] == name]
    found = [p for made in whole for p in made.params if isinstance(p, click.Option)]
    return {text for option in found for text in option.opts} | {"-h", "--help"}


def pages() -> list[Path]:
    """Return all prose of the repository."""
    tops = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "spaces").rglob("*.md")]
    return sorted(path for path in tops if path.name != "CHANGELOG.md")


def test_the_page_of_commands_is_current() -> None:
    """If this fails: `make docs`."""
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == generator().render()


def test_every_command_and_option_is_on_the_page() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert [section.split("\n")[0] for section in sections] == list(COMMANDS)
    for name, section in zip(COMMANDS, sections, strict=True):
        assert options(name) <= set(OPTION.findall(section)), name
    for name in every_command():
        assert f"`{name} --json` prints" in page


def test_the_chain_of_the_page_can_be_typed() -> None:
    for line in generator().CHAIN:
        program, name, *arguments = shlex.split(line)
        assert program == "morlaif-hub"
        command(name).make_context(name, arguments)  # exits with 2 if it cannot be parsed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name: str) -> None:
    """One line for the list of commands, not cut off, and a word on every option."""
    made = command(name)
    assert not made.get_short_help_str(limit=60).endswith("...")
    silent = [p.name for p in made.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def texts() -> dict[str, str]:
    """Return all prose, and all that the package may print, by path."""
    sources = [*pages(), *sorted((ROOT / "morlaif_hub").rglob("*"))]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sources
        if path.suffix in (".md", ".py", ".jinja")
    }


def test_commands_that_are_mentioned_exist() -> None:
    """In prose, in error messages, hints and cards; with the options that are named with them."""
    found = [
        (f"{path}: morlaif-hub {name}{rest}", name, rest)
        for path, text in texts().items()
        for quoted, hyphened, rest in MENTION.findall(text)
        for name in [quoted or hyphened]
    ]
    assert len(found) > 10
    assert [where for where, name, _ in found if name not in COMMANDS] == []
    assert [w for w, n, rest in found if not set(OPTION.findall(rest)) <= options(n)] == []


def test_judges_that_are_mentioned_exist() -> None:
    found = [
        (f"{path}: {kind}", kind)
        for path, text in texts().items()
        for kind in re.findall(r"(?:--judge|validate-judge) ([\w-]+):", text)
    ]
    assert found
    assert [where for where, kind in found if kind not in JUDGES.names()] == []


def test_python_on_pages_parses_and_imports_public_names() -> None:
    for page in pages():
        for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
            if language != "python":
                continue
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module == "morlaif_hub":
                    names = {alias.name for alias in node.names}
                    assert names <= set(morlaif_hub.__all__), page


def test_the_readme_is_short_and_finished() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "TABLE" not in text
