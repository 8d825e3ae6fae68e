"""What is going on, on stderr: a bar on a terminal, elsewhere one line for each stage."""

import os
import sys
import warnings
from types import TracebackType
from typing import Any

import click


class Progress:
    """Shows stages of work, in the ways in which the library tells of them.

    It is a context, so that a bar is finished before an error is printed.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage, self._done = "", 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()

    def start(self, stage: str, total: int | None) -> None:
        """Begin a stage, in words, of `total` units if that is known; the one before it is over."""
        self.finish()
        self._stage, self._done = stage, 0
        if not sys.stderr.isatty():
            click.echo(stage if total is None else f"{stage} ({total:,} to do)", err=True)
            return
        from tqdm import tqdm  # here, since --help needs none

        self._bar = tqdm(total=total, desc=stage, dynamic_ncols=True)

    def advance(self, count: int) -> None:
        """Count units that were just done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)

    def reach(self, stage: str, done: int, total: int) -> None:
        """Tell how much of a stage is done so far, beginning it when it is new."""
        if stage != self._stage:
            self.start(stage, total)
        self.advance(done - self._done)

    def say(self, text: str) -> None:
        """Write a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)

    def finish(self) -> None:
        """End the stage, so that something else can be said."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def quiet_libraries() -> None:
    """Keep other libraries' bars, hints and warnings off the screen.

    They are about their own loading of parts and about names that changed; our own progress and
    errors say what matters here. What the user has set stays, and so do the bars of downloads.
    """
    for name, value in {
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from transformers.utils import logging

    # Its own switch would turn off the Hub's bars as well, and a download takes minutes.
    logging.set_tqdm_hook(lambda make, given, named: make(*given, **{**named, "disable": True}))
