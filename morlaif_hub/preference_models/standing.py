"""How each preference model of a run stands while it is trained, for those who watch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from morlaif_hub.preference_models.losses import Check


class Standing(NamedTuple):
    """How one preference model stands.

    Attributes:
        principle: Its name.
        step: How many steps were done.
        total: How many there are at most.
        check: How good it is on its validation pairs now; None where that was not looked at.
        ended: Whether its training ended here, before its last step.
    """

    principle: str
    step: int
    total: int
    check: Check | None = None
    ended: bool = False


Watcher = Callable[[Sequence[Standing]], None]
"""Told of all that were looked at after a step, or of one whose training ended early."""


class Standings:
    """Turns what a trainer tells of its steps into standings.

    Args:
        total: Steps of each preference model, at most.
        tell: Is told.
    """

    def __init__(self, total: int, tell: Watcher) -> None:
        self._total, self._tell = total, tell
        self._done: dict[str, int] = {}

    def advance(self, principle: str, steps: int) -> None:
        """Count steps; with several at once, after others, a training ended and skips the rest."""
        before = self._done.get(principle, 0)
        self._done[principle] = before + steps
        if before and steps > 1 and before + steps == self._total:
            self._tell([Standing(principle, before + 1, self._total, ended=True)])

    def left(self, principle: str) -> int:
        """Return how many steps are left, and tell that the training ended if there are any."""
        done = self._done.get(principle, 0)
        if 0 < done < self._total:
            self._tell([Standing(principle, done, self._total, ended=True)])
        return max(0, self._total - done)

    def checked(self, step: int, found: Mapping[str, Check]) -> None:
        """Tell what checks on validation pairs found after a step, by principle."""
        if found:
            self._tell([Standing(name, step, self._total, found[name]) for name in found])
