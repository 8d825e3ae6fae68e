"""Several processes that run one command, of which one speaks."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import click

from morlaif_hub.errors import MorlaifHubError
from morlaif_hub.scoring.processes import Processes


@contextmanager
def one_voice(processes: Processes) -> Iterator[None]:
    """Let the main process alone speak, of errors in any of them too."""
    try:
        with ExitStack() as stack:
            if not processes.main:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    except MorlaifHubError as error:
        if processes.main:
            raise
        # Whoever launched us would end the main process at once if we failed, before it has told.
        raise click.exceptions.Exit(0) from error
    finally:
        processes.close()
