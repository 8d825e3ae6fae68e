"""Validation on probes, with judges whose answers are known."""

from collections.abc import Sequence
from typing import Any

import pytest
from fake_judges import Rule, RuleJudge, always_first, always_tie, longer, prefers, shorter

from morlaif_hub.judges.base import Question, Verdict
from morlaif_hub.judges.validation import validate_judge
from morlaif_hub.principles import Principle, Probe, load_constitution
from morlaif_hub.statistics import wilson_interval


def principle(name: str, probes: Sequence[Probe]) -> Principle:
    return Principle(name, "Good.", "Bad.", "better", probes=tuple(probes))


def probes(count: int, *, longer_ones: int) -> list[Probe]:
    """Return probes of three words against two; in `longer_ones` of them the three are better."""
    made = []
    for i in range(count):
        three, two = f"good number {i}", f"bad {i}"
        better_is_longer = i < longer_ones
        made.append(
            Probe(
                f"Question {i}?",
                better=three if better_is_longer else two,
                worse=two if better_is_longer else three,
            )
        )
    return made


MIXED = principle("mixed", [*probes(24, longer_ones=12)])
BETTER = {probe.better for probe in MIXED.probes}
WORSE = {probe.worse for probe in MIXED.probes}


@pytest.mark.parametrize(
    ("rule", "accuracy", "verdict"),
    [
        (prefers(BETTER), 1.0, "fit"),
        (prefers(WORSE), 0.0, "wrong way"),
        (longer, 0.5, "unproven"),
        (always_tie, 0.5, "unproven"),
        (always_first, 0.5, "unproven"),
    ],
)
def test_accuracy_and_verdict(rule: Rule, accuracy: float, verdict: str) -> None:
    record = validate_judge(RuleJudge(rule), [MIXED])["mixed"]
    assert (record.accuracy, record.verdict, record.n) == (accuracy, verdict, 24)
    assert record.interval == pytest.approx(wilson_interval(24 * accuracy, 24))


def test_a_judge_that_always_says_a_gains_nothing() -> None:
    """Of one order alone, and with the better side always in A, it would look perfect."""

    class AlwaysA(RuleJudge):
        def verdicts(self, questions: Sequence[Question], **_: Any) -> list[Verdict]:
            return [Verdict(0.9, 0.9) for _ in questions]

    record = validate_judge(AlwaysA(always_first), [MIXED])["mixed"]
    assert 0.2 < record.accuracy < 0.8
    assert record.verdict == "unproven"


def test_first_share() -> None:
    assert validate_judge(RuleJudge(always_first), [MIXED])["mixed"].first_share == 1.0
    assert validate_judge(RuleJudge(longer), [MIXED])["mixed"].first_share == 0.5
    assert validate_judge(RuleJudge(always_tie), [MIXED])["mixed"].first_share == 0.5
    no_order = RuleJudge(longer, orders=False)
    assert validate_judge(no_order, [MIXED])["mixed"].first_share is None


def test_parts_by_length() -> None:
    equal = [Probe(f"Equal {i}?", better=f"fine {i}", worse=f"poor {i}") for i in range(3)]
    of_all_parts = principle("parts", [*probes(6, longer_ones=4), *equal])
    record = validate_judge(RuleJudge(longer), [of_all_parts])["parts"]
    assert {part.part: (part.accuracy, part.n) for part in record.parts} == {
        "longer": (1.0, 4),
        "shorter": (0.0, 2),
        "equal": (0.5, 3),
    }
    only_longer = principle("parts", probes(4, longer_ones=4))
    (part,) = validate_judge(RuleJudge(longer), [only_longer])["parts"].parts
    assert (part.part, part.n) == ("longer", 4)


def test_length_correlation() -> None:
    lengths = [
        Probe(f"{n}?", better="word " * n + "end", worse="end " * (9 - n) + "word")
        for n in range(9)
    ]
    varied = principle("varied", lengths)
    liked = validate_judge(RuleJudge(longer), [varied])["varied"].length_correlation
    disliked = validate_judge(RuleJudge(shorter), [varied])["varied"].length_correlation
    assert liked is not None
    assert disliked is not None
    assert liked > 0.8
    assert disliked == pytest.approx(-liked)
    assert validate_judge(RuleJudge(always_tie), [varied])["varied"].length_correlation is None


def test_a_principle_without_probes_has_no_record() -> None:
    bare = principle("bare", [])
    assert set(validate_judge(RuleJudge(longer), [bare, MIXED])) == {"mixed"}
    assert validate_judge(RuleJudge(longer), [bare]) == {}


def test_all_probes_are_asked_at_once() -> None:
    calls: list[int] = []

    class Counting(RuleJudge):
        def verdicts(self, questions: Sequence[Question], **named: Any) -> list[Verdict]:
            calls.append(len(questions))
            return super().verdicts(questions, **named)

    told: list[int] = []
    other = principle("other", probes(5, longer_ones=2))
    validate_judge(Counting(longer), [MIXED, other], progress=told.append)
    assert calls == [29]
    assert sum(told) == 29


def test_the_better_side_of_the_built_in_probes_is_not_always_a() -> None:
    judge = RuleJudge(longer)
    constitution = load_constitution()
    validate_judge(judge, constitution.principles)
    for name in constitution.names:
        sides = [q.comparison.human_choice for q in judge.asked if q.principle.name == name]
        assert 4 <= sides.count("a") <= len(sides) - 4
