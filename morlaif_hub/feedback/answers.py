"""What a judge answered to all questions on a principle, as arrays of numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.errors import JudgeError
from morlaif_hub.feedback.bias import Judged
from morlaif_hub.feedback.cache import CachedJudge
from morlaif_hub.feedback.dataset import Labelled
from morlaif_hub.feedback.spool import Spool
from morlaif_hub.hub.front_matter import one_line
from morlaif_hub.hub.manifest import UnansweredRecord
from morlaif_hub.judges.base import Question, Verdict
from morlaif_hub.principles import Principle
from morlaif_hub.sources import Split

_AT_ONCE = 1024  # questions
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Answers:
    """The answers on one principle, in the order of the comparisons.

    Attributes:
        probabilities: That A is better, when it was shown first and second; NaN where there is no
            verdict. Shape (n, 2).
        reasons: Why there is no verdict, and of how many comparisons.
    """

    probabilities: NDArray[np.float64]
    reasons: Counter[str]

    @property
    def given(self) -> NDArray[np.bool_]:
        """Which comparisons have a verdict; shape (n,)."""
        return np.asarray(~np.isnan(self.probabilities[:, 0]))

    def judged(self, spool: Spool) -> Judged:
        """Return the verdicts as a report on the judge's bias takes them."""
        given = self.given
        a_first, a_second = self.probabilities[given].T
        return Judged(a_first, a_second, spool.prompt_ids[given], spool.human_sides[given])

    def unanswered(self) -> tuple[UnansweredRecord, ...]:
        """Return why there are no verdicts, the most frequent reason first."""
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return tuple(UnansweredRecord(reason=reason, n=n) for reason, n in ordered)

    def rows(self, spool: Spool, held_out: NDArray[np.bool_]) -> Iterator[tuple[Split, Labelled]]:
        """Yield the comparisons that have a verdict, each with its side and the verdict.

        Args:
            spool: The comparisons.
            held_out: Which of them go to the test split; shape (n,).
        """
        for comparison, (first, second), out, given in zip(
            spool, self.probabilities, held_out, self.given, strict=True
        ):
            if given:
                yield ("test" if out else "train"), Labelled(comparison, Verdict(first, second))


def collected_answers(
    judge: CachedJudge, principles: Sequence[Principle], spool: Spool
) -> list[Answers]:
    """Return what a judge that was asked everything answered, by principle.

    Raises:
        JudgeError: If it gave no verdict at all on a principle.
    """
    collected = [Answers(np.full((len(spool), 2), np.nan), Counter()) for _ in principles]
    comparisons = iter(spool)
    size = max(1, _AT_ONCE // len(principles))
    for start in range(0, len(spool), size):
        batch = list(islice(comparisons, size))
        for principle, answers in zip(principles, collected, strict=True):
            known = judge.known([Question(comparison, principle) for comparison in batch])
            for row, answer in enumerate(known, start=start):
                if isinstance(answer, Verdict):
                    pair = (answer.probability_a_first, answer.probability_a_second)
                    answers.probabilities[row] = pair
                else:
                    # A server's words: they must not fill a manifest, or steer a terminal.
                    answers.reasons[one_line(answer.reason)[:_REASON_CHARACTERS]] += 1
    for principle, answers in zip(principles, collected, strict=True):
        if not answers.given.any():
            reasons = ", ".join(f"{item.reason} ({item.n:,})" for item in answers.unanswered()[:3])
            raise JudgeError(
                f"judge {judge.spec!r} answered none of {len(spool):,} questions on "
                f"{principle.name}: {reasons}. Nothing was written; answers to other questions are "
                "kept for the next run"
            )
    return collected
