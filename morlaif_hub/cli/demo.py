"""The command that serves the demo."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from morlaif_hub.cli.banks import bank_option, bank_sources
from morlaif_hub.cli.command import Report, command, local
from morlaif_hub.workspace import Workspace

PACKAGE = Path(__file__).parent.parent


@command("demo")
@bank_option
@click.option("--model", metavar="MODEL", help="What answers. [default: the embedded model]")
def demo(workspace: Workspace, *, banks: tuple[str, ...], model: str | None) -> Report:
    """Serve a page to score responses and steer answers.

    It runs on this machine until Ctrl-C. The environment variable GRADIO_SERVER_PORT sets its port.
    """
    if find_spec("gradio") is None:
        raise click.ClickException(
            "the demo needs gradio; run 'make setup' in the checkout, or in there "
            "pip install '.[demo]'"
        )
    found = bank_sources(workspace, banks)
    sources = [local(source) if isinstance(source, Path) else source for source in found]
    arguments = [part for source in sources for part in ("--bank", source)]
    if model is not None:
        arguments += ["--model", model]
    done = subprocess.run([sys.executable, str(program()), *arguments], check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)
    return Report({"bank": sources, "model": model}, "The demo has ended.")


def program(package: Path = PACKAGE) -> Path:
    """Return the demo's program: inside the package in a wheel, beside it in a checkout."""
    places = [place / "spaces/demo/app.py" for place in (package, package.parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise click.ClickException(
            f"the demo's program is not there ({places[0]}); install the package again"
        )
    return found
