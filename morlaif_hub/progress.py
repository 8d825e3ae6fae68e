"""How long work tells how far it is; whoever runs it decides how to show that."""

from typing import Protocol


class StageProgress(Protocol):
    """Shows how far a stage of the work is, such as a bar of tqdm."""

    def start(self, stage: str, total: int) -> None:
        """Begin a stage, in words, of `total` units; the one before it is over."""

    def advance(self, count: int) -> None:
        """Count units that were just done."""


class Silent:
    """Shows nothing."""

    def start(self, stage: str, total: int) -> None:
        """Ignore that a stage begins."""

    def advance(self, count: int) -> None:
        """Ignore that units were done."""


class Reached:
    """Turns what is told as a stage's name, how much is done and of how much, into a progress's.

    Args:
        progress: Is told the start of every stage, and what is new.
    """

    def __init__(self, progress: StageProgress) -> None:
        self._progress = progress
        self._stage, self._done = "", 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell that `done` of `total` units of a stage are done."""
        if stage != self._stage:
            self._progress.start(stage, total)
            self._stage, self._done = stage, 0
        self._progress.advance(done - self._done)
        self._done = done
