"""Judges without a model: a rule says how sure they are that the response shown first is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import Progress, Question, Verdict
from morlaif_hub.principles import Principle

Rule = Callable[[str, str, Principle], float]


@dataclass(frozen=True)
class RuleJudge:
    """Shows both orders to a rule of (first, second, principle), and counts what it is asked."""

    rule: Rule
    spec: str = "fake:rule"
    orders: bool = True
    base: BaseIdentity | None = None
    prompt_sha256: str = "f" * 64
    asked: list[Question] = field(default_factory=list)

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Verdict]:
        verdicts = []
        for question in questions:
            comparison, principle = question
            a, b = comparison.response_a, comparison.response_b
            verdicts.append(Verdict(self.rule(a, b, principle), 1 - self.rule(b, a, principle)))
            self.asked.append(question)
            if progress:
                progress(1)
        return verdicts


def always_first(_first: str, _second: str, _principle: Principle) -> float:
    """Prefers whatever is shown first: pure position bias."""
    return 0.9


def always_tie(_first: str, _second: str, _principle: Principle) -> float:
    """Has no opinion."""
    return 0.5


def longer(first: str, second: str, _principle: Principle) -> float:
    """Prefers more characters, surer the greater the difference; consistent over orders."""
    difference = len(first) - len(second)
    return 0.5 + difference / (2 * (abs(difference) + 5))


def shorter(first: str, second: str, principle: Principle) -> float:
    """Prefers fewer characters."""
    return 1 - longer(first, second, principle)


def prefers(better: set[str]) -> Rule:
    """Return the rule of a judge who knows which responses are the better ones."""

    def rule(first: str, second: str, _principle: Principle) -> float:
        return 0.5 + 0.4 * ((first in better) - (second in better))

    return rule
