"""What all commands have in common: their options, and how they report."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from morlaif_hub.cli.progress import quiet_libraries
from morlaif_hub.workspace import Workspace

COUNT = click.IntRange(min=1)


class Report(NamedTuple):
    """What a command found.

    Attributes:
        data: Plain values, printed by `--json`.
        text: The same for people.
        next_step: A command to go on with, shown on stderr.
        exit_code: Other than 0 when what was found is bad news that a script has to see.
    """

    data: dict[str, Any]
    text: str
    next_step: str | None = None
    exit_code: int = 0


def command(
    name: str, *, with_models: bool = False
) -> Callable[[Callable[..., Report]], click.Command]:
    """Return a decorator that makes a command of a function from options to a report.

    The function gets a `workspace` and its own options by name. `--workspace` and `--json` are
    added here, so that every command has them.

    Args:
        name: As it is typed.
        with_models: Whether it uses libraries that talk on stderr when they load a model.
    """

    def decorate(function: Callable[..., Report]) -> click.Command:
        def run(*, workspace: str | None, as_json: bool, **options: Any) -> None:
            _quiet_hub()
            if with_models:
                quiet_libraries()
            report = function(Workspace.at(workspace), **options)
            if as_json:
                click.echo(json.dumps(report.data, indent=2, allow_nan=False))
            else:
                click.echo(report.text)
            if report.next_step is not None:
                there = f" --workspace {shlex.quote(workspace)}" if workspace else ""
                click.echo(f"next: {report.next_step}{there}", err=True)
            if report.exit_code:
                click.get_current_context().exit(report.exit_code)

        made = click.command(name)(update_wrapper(run, function))
        made.params += [
            click.Option(
                ["--workspace"],
                metavar="FOLDER",
                help="Where this project's artifacts are. [env var: MORLAIF_WORKSPACE; default: "
                "./morlaif]",
            ),
            click.Option(
                ["--json", "as_json"], is_flag=True, help="Print one JSON object, for programs."
            ),
        ]
        return made

    return decorate


def _quiet_hub() -> None:
    """Set what the Hub's client reads when it is loaded: no telemetry, bars on a terminal only."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def seed_option(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add `--seed` to a command that draws something."""
    return click.option(
        "--seed",
        metavar="N",
        default=0,
        show_default=True,
        help="Of all that is drawn at random.",
    )(function)


def length_and_temperature(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add `--max-new-tokens` and `--temperature` to a command that samples responses."""
    function = click.option(
        "--temperature",
        type=click.FloatRange(min=0, min_open=True),
        metavar="X",
        default=0.8,
        show_default=True,
        help="The higher, the more different the responses.",
    )(function)
    return click.option(
        "--max-new-tokens",
        type=COUNT,
        metavar="N",
        default=128,
        show_default=True,
        help="Limit of a response.",
    )(function)


def constitution_option(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add `--constitution` to a command that takes principles by name."""
    return click.option(
        "--constitution",
        metavar="SET",
        default="morlaif-12",
        show_default=True,
        help="The set of principles: a name, a plugin's package/name, or a TOML file.",
    )(function)


def typed() -> list[click.Option]:
    """Return those options of the command that runs that were typed, in the order of `--help`."""
    context = click.get_current_context()
    return [
        option
        for option in context.command.params
        if isinstance(option, click.Option)
        and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    ]


def local(path: Path) -> str:
    """Return a path as it can be typed where a Hub id could stand as well."""
    return str(path) if path.is_absolute() else f"./{path}"


def hint(text: str) -> None:
    """Say on stderr what a person should know beside the results."""
    click.echo(f"hint: {text}", err=True)
