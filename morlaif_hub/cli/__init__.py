"""The command line: each command parses, calls one library function and prints.

Commands are listed in the order in which a project uses them, and each is imported when it is
asked for.
"""

from importlib import import_module
from typing import cast

import click

from morlaif_hub import __version__
from morlaif_hub.cli.tables import printable
from morlaif_hub.errors import MorlaifHubError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells have it."""

COMMANDS = {
    "quickstart": "quickstart",
    "principles": "principles",
    "train-sft": "sft",
    "sample-pairs": "feedback",
    "validate-judge": "feedback",
    "collect-feedback": "feedback",
    "inspect-feedback": "inspect",
    "train-pm": "preference_models",
    "fit-weights": "weights",
    "score": "scoring",
    "steer": "scoring",
    "train-policy": "policies",
    "evaluate": "evaluate",
    "push-base": "publish",
    "push-feedback": "publish",
    "push-pm": "publish",
    "push-bank": "publish",
    "push-policy": "publish",
    "verify": "publish",
    "search": "search",
    "demo": "demo",
    "plugins": "plugins",
}
"""The module of this package that has each command, under its name with `_` for `-`."""


class FriendlyGroup(click.Group):
    """Imports commands late, and shows our own errors as one line; bugs keep their traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the commands in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  # click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """Return a command, importing its module."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        return cast(click.Command, getattr(module, cmd_name.replace("-", "_")))

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; exit with 1 after an error of ours, with 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except MorlaifHubError as error:
            raise click.ClickException(printable(" ".join(str(error).split()))) from error
        except KeyboardInterrupt:
            click.echo("Stopped. Work that was finished is kept.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(
    cls=FriendlyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="morlaif-hub")
def cli() -> None:
    """Multi-objective RL from AI feedback, with preference models shared on the Hugging Face Hub.

    One small preference model per principle scores responses; a scalarizer makes one reward of
    the scores; a policy is steered by it when it answers, or trained on it. `morlaif-hub
    quickstart` runs the whole loop offline on the embedded model.

    A model, dataset or bank (SRC, REPO) is a Hub id, with `@revision` to pin one, or a local path
    that starts with `./` or `/`. A judge (SPEC) is `local:MODEL` or `likelihood:MODEL`, where an
    empty MODEL means the embedded one, or `openai:MODEL` for one behind a server;
    `single-objective:SPEC` asks it on one principle drawn for each pair.
    """


def every_command() -> dict[str, click.Command]:
    """Return every command under what is typed for it, such as `evaluate winrate`."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in COMMANDS:
        made = cli.get_command(context, name) or cli
        inner = made.commands if isinstance(made, click.Group) else {}
        found |= {f"{name} {sub}": of_it for sub, of_it in inner.items()} or {name: made}
    return found


def main() -> None:
    """Run the command line."""
    cli(prog_name="morlaif-hub")
