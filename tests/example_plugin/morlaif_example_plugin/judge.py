"""A judge: it answers which of two responses is better. This one has no model, only a rule."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from morlaif_hub.errors import OptionError
from morlaif_hub.judges.base import Progress, Question, Verdict

RULE = "The response whose words are shorter on average is better, whatever the principle."


@dataclass(frozen=True)
class ShortWordsJudge:
    """Prefers shorter words; sees no order and needs no model.

    Attributes:
        scale: Difference in mean word length, in letters, at which it is 73 % sure.
    """

    scale: float
    orders: bool = False
    base: None = None
    prompt_sha256: str = hashlib.sha256(RULE.encode()).hexdigest()

    @property
    def spec(self) -> str:
        """What makes the same judge again."""
        return f"morlaif-example-plugin/short_words:?scale={self.scale}"

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Verdict]:
        """Return one verdict for each question, in order."""
        answers = [self._verdict(question) for question in questions]
        if progress is not None:
            progress(len(answers))
        return answers

    def _verdict(self, question: Question) -> Verdict:
        pair = question.comparison
        longer_words_in_b = _letters_a_word(pair.response_b) - _letters_a_word(pair.response_a)
        probability = 0.5 + 0.5 * math.tanh(longer_words_in_b / self.scale / 2)
        return Verdict(probability, probability)


def short_words(model: str, *, scale: float = 1.0) -> ShortWordsJudge:
    """Return the judge; what follows the colon of its spec must be empty.

    Raises:
        OptionError: If a model is named, or `scale` is not positive and finite.
    """
    if model:
        raise OptionError(f"short_words has no model, got {model!r}; write 'short_words:'")
    if not 0 < scale < math.inf:
        raise OptionError(f"scale must be positive and finite, got {scale}")
    return ShortWordsJudge(scale=float(scale))


def _letters_a_word(text: str) -> float:
    words = text.split()
    return sum(map(len, words)) / max(len(words), 1)
