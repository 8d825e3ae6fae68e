"""Options that several benchmarks have."""

from collections.abc import Callable, Iterable

import click
import torch

from benchmarks.settings import ADAPTERS, DEPTHS
from morlaif_hub.cli.command import COUNT, Report

Function = Callable[..., Report]


def _set_threads(_context: click.Context, _parameter: click.Parameter, value: int | None) -> None:
    if value:
        torch.set_num_threads(value)


tiny_option = click.option(
    "--tiny", is_flag=True, help="On a tiny model and short texts; else on the embedded."
)
max_length_option = click.option(
    "--max-length", type=COUNT, metavar="N", default=512, show_default=True, help="In tokens."
)
threads_option = click.option(
    "--threads",
    type=COUNT,
    metavar="N",
    callback=_set_threads,
    expose_value=False,
    help="Of torch. [default: torch's own choice]",
)


def pairs_option(use: str) -> Callable[[Function], Function]:
    """Add `--pairs`, comparisons to do something with."""
    return click.option("--pairs", metavar="SOURCE", help=f"Comparisons to {use}.")


def layers_option(default: Iterable[str]) -> Callable[[Function], Function]:
    """Add `--layers`, keys of `DEPTHS`."""
    return click.option(
        "--layers",
        type=click.Choice(list(DEPTHS)),
        multiple=True,
        default=list(default),
        show_default=True,
        help="Where the adapters are, from the top; can be given several times.",
    )


def adapters_timed_option(which: str) -> Callable[[Function], Function]:
    """Add `--adapters-timed`, how many adapters do what is multiplied."""
    return click.option(
        "--adapters-timed",
        type=click.IntRange(1, ADAPTERS),
        metavar="N",
        default=1,
        show_default=True,
        help=f"Of the {ADAPTERS}, {which}.",
    )


def dtype_option(help: str) -> Callable[[Function], Function]:
    """Add `--dtype`."""
    return click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help=help,
    )
