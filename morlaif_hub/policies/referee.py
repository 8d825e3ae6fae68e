"""An independent judge of what a policy answers, against what it answered before training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison, Message
from morlaif_hub.judges.base import Judge, Question, Verdict, ask
from morlaif_hub.policies.measure import HeldOut
from morlaif_hub.principles import Principle

Array = NDArray[np.float64]


class Shares(NamedTuple):
    """What a judge said of a policy's answers.

    Attributes:
        values: For each answer 1 if it is preferred to the one before training, 0 if that one is,
            one half for a tie and for equal answers; NaN where the judge said nothing.
    """

    values: Array

    @classmethod
    def of(cls, values: Sequence[float]) -> "Shares":
        """Return the shares of some answers."""
        return cls(np.array(values, dtype=float))

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which answers the judge said something on."""
        return ~np.isnan(self.values)

    @property
    def mean(self) -> float | None:
        """Over the answers that the judge said something on; None if there are none."""
        answered = self.values[self.answered]
        return float(answered.mean()) if len(answered) else None


class Referee:
    """Asks a judge on a principle which answer to a held-out prompt is better, in both orders.

    Args:
        judge: One that the preference models did not learn from, or it only repeats them.
        principle: What it is asked on.
    """

    def __init__(self, judge: Judge, principle: Principle) -> None:
        self.judge, self.principle = judge, principle
        self._said: dict[_Pair, float] = {}

    def shares(self, prompts: Sequence[Sequence[Message]], now: HeldOut, before: HeldOut) -> Shares:
        """Return which of a policy's answers are preferred to those before training.

        An answer is compared with that of the same place among the answers to its prompt. What is
        equal, or empty on both sides, is a tie; an answer that is empty on one side has lost.

        Args:
            prompts: Those that were answered.
            now: The answers.
            before: Those before training, to the same prompts, as many.

        Raises:
            JudgeError: If the judge gives no usable answer.
        """
        rows = zip(now.prompts.tolist(), now.texts, before.texts, strict=True)
        pairs = [_Pair(prompt, text, other) for prompt, text, other in rows]
        self._ask([pair for pair in pairs if pair.known is None], prompts)
        values = [self._said[pair] if pair.known is None else pair.known for pair in pairs]
        return Shares.of(values)

    def _ask(self, pairs: Sequence["_Pair"], prompts: Sequence[Sequence[Message]]) -> None:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._said]
        if not new:
            return
        questions = [
            Question(Comparison(tuple(prompts[n]), text, other), self.principle)
            for n, text, other in new
        ]
        for pair, answer in zip(new, ask(self.judge, questions), strict=True):
            said = _share(answer) if isinstance(answer, Verdict) else float("nan")
            self._said[pair] = said


class _Pair(NamedTuple):
    """An answer to a held-out prompt, by its number, and the one before training."""

    prompt: int
    text: str
    other: str

    @property
    def known(self) -> float | None:
        """What needs no judge; None for what does."""
        if self.text == self.other:
            return 0.5
        return None if self.text and self.other else float(bool(self.text))


def _share(verdict: Verdict) -> float:
    if verdict.tie:
        return 0.5
    return float(verdict.probability_a > 0.5)
