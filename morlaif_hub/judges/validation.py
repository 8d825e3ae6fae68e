"""Validation: is the better side of a principle's probes found?

One rule holds for judges and preference models alike: `fit` when the 95 % interval of the accuracy
lies above one half, `wrong way` when it lies below, `unproven` when it contains one half.

People's choices are another matter. Their better side is better for whoever chose, all things taken
together: who asks for something harmful may prefer the detailed answer, and a judge of
harmlessness should not. So a judge that disagrees with people on a principle may be right; that
is reported and warned of, and only the probes can tell that it is wrong.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import nsmallest

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.comparisons import Comparison
from morlaif_hub.hub.manifest import ChoiceRecord, PartRecord, ValidationRecord
from morlaif_hub.judges.base import Judge, Progress, Question, Verdict, ask
from morlaif_hub.messages import content_hash
from morlaif_hub.principles import Part, Principle
from morlaif_hub.statistics import correlation, log_odds, validation_verdict, wilson_interval

_LOG = logging.getLogger("morlaif_hub.judges")

PARTS: tuple[Part, ...] = ("longer", "shorter", "equal")
CHOICES = 64
"""Pairs whose better side people chose, that a judge is asked about before it labels."""


def validate_judge(
    judge: Judge, principles: Sequence[Principle], *, progress: Progress | None = None
) -> dict[str, ValidationRecord]:
    """Return how well a judge does on each principle's probes, all asked in one go.

    Returns:
        By the principles' names. A probe that the judge left unanswered does not count. A
        principle without probes, or answers to them, is left out: nothing was measured, so there
        is no verdict on it, not even `unproven`.

    Raises:
        JudgeError: If the judge gives no usable answer.
    """
    questions = [
        Question(comparison, principle)
        for principle in principles
        for comparison in probe_comparisons(principle)
    ]
    answers = iter(ask(judge, questions, progress=progress))
    records = {}
    for principle in principles:
        given = [
            (p, a)
            for p, a in zip(principle.probes, answers, strict=False)
            if isinstance(a, Verdict)
        ]
        if not given:
            continue
        probes, verdicts = zip(*given, strict=True)
        records[principle.name] = probe_record(
            replace(principle, probes=probes),
            log_odds([verdict.probability_a for verdict in verdicts]),
            first_share=float(np.mean([verdict.first_share for verdict in verdicts]))
            if judge.orders
            else None,
        )
    return records


def probe_comparisons(principle: Principle) -> tuple[Comparison, ...]:
    """Return a principle's probes as comparisons, in their order.

    Which side is response A is decided by content, so what always prefers A is right about half
    of the time. The better side is the human choice.
    """
    return tuple(
        Comparison.from_choice(probe.prompt, probe.better, rejected=probe.worse)
        for probe in principle.probes
    )


def probe_record(
    principle: Principle, preferences: ArrayLike, *, first_share: float | None = None
) -> ValidationRecord:
    """Return the accuracy of preferences on a principle's probes, and what follows from it.

    Args:
        principle: Has at least one probe.
        preferences: For each of `probe_comparisons`, a number that is positive where response A
            is preferred, negative where B is, and 0 for a tie, which counts one half.
        first_share: Share of answers that prefer what was shown first, for what has an order.
    """
    comparisons = probe_comparisons(principle)
    preferred = np.asarray(preferences, dtype=float)
    sides = np.array([1.0 if c.human_choice == "a" else -1.0 for c in comparisons])
    correct = 0.5 + 0.5 * np.sign(preferred) * sides
    interval = wilson_interval(float(correct.sum()), len(correct))
    words = [len(c.response_a.split()) - len(c.response_b.split()) for c in comparisons]
    of_part = {part: [p.part == part for p in principle.probes] for part in PARTS}
    return ValidationRecord(
        verdict=validation_verdict(interval),
        accuracy=float(correct.mean()),
        interval=(interval.low, interval.high),
        n=len(correct),
        parts=tuple(
            PartRecord(part=part, accuracy=float(correct[rows].mean()), n=sum(rows))
            for part, rows in of_part.items()
            if any(rows)
        ),
        first_share=first_share,
        length_correlation=correlation(preferred, words),
    )


class ChoiceSample:
    """Comparisons that people had chosen between: some of many, drawn as they go by.

    At most one is kept of each prompt, as the answers to one prompt are not independent. Which
    ones depends on their content and the seed, neither on their order nor on repeats.

    Args:
        n: How many are kept at most.
        seed: Another seed draws others.
    """

    def __init__(self, n: int = CHOICES, *, seed: int = 0) -> None:
        self._n, self._seed = n, seed
        self._kept: dict[str, tuple[str, str, Comparison]] = {}  # by prompt: ranks, comparison

    def add(self, comparison: Comparison) -> None:
        """Let a comparison take part in the draw, if people chose."""
        if comparison.human_choice is None:
            return
        prompt = comparison.prompt_id
        ranked = (content_hash([self._seed, prompt]), comparison.id, comparison)
        if ranked[:2] < self._kept.get(prompt, ("~",))[:2]:  # "~" comes after every hash
            self._kept[prompt] = ranked
        if len(self._kept) > 2 * self._n:
            least = nsmallest(self._n, self._kept, key=lambda prompt: self._kept[prompt][:2])
            self._kept = {prompt: self._kept[prompt] for prompt in least}

    @property
    def comparisons(self) -> list[Comparison]:
        """What was drawn so far, in the order of the draw."""
        least = nsmallest(self._n, self._kept.values(), key=lambda ranked: ranked[:2])
        return [comparison for *_, comparison in least]


def sample_choices(
    comparisons: Iterable[Comparison], *, n: int = CHOICES, seed: int = 0
) -> list[Comparison]:
    """Return at most n comparisons of different prompts that people had chosen between.

    Args:
        comparisons: Any number; gone through once, of which 2 n are kept at most.
        n: How many.
        seed: Another seed draws others.
    """
    sample = ChoiceSample(n, seed=seed)
    for comparison in comparisons:
        sample.add(comparison)
    return sample.comparisons


def validate_on_choices(
    judge: Judge,
    principles: Sequence[Principle],
    chosen: Sequence[Comparison],
    *,
    progress: Progress | None = None,
) -> dict[str, ChoiceRecord]:
    """Return how often a judge of each principle prefers what people had chosen.

    Whoever labels these comparisons anyway and keeps the answers pays for nothing extra.

    Args:
        judge: Asked about every comparison on every principle.
        principles: With different names.
        chosen: With a human choice, each of another prompt, as from `sample_choices`.
        progress: Told how many questions were just answered.

    Returns:
        By the principles' names; one without answers is left out. `wrong way` is a warning in the
        log and raises nothing: see at the top of this module why.

    Raises:
        JudgeError: If the judge gives no usable answer.
    """
    questions = [Question(item, principle) for item in chosen for principle in principles]
    answers = ask(judge, questions, progress=progress)
    correct: dict[str, list[float]] = {}
    for (comparison, principle), answer in zip(questions, answers, strict=True):
        if isinstance(answer, Verdict):
            side = 1.0 if comparison.human_choice == "a" else -1.0
            agreed = 0.5 + 0.5 * side * float(np.sign(answer.probability_a - 0.5))
            correct.setdefault(principle.name, []).append(agreed)
    records = {}
    for name, values in correct.items():
        interval = wilson_interval(sum(values), len(values))
        records[name] = ChoiceRecord(
            verdict=validation_verdict(interval),
            accuracy=sum(values) / len(values),
            interval=(interval.low, interval.high),
            n=len(values),
        )
        if records[name].verdict == "wrong way":
            _LOG.warning(
                "AGAINST PEOPLE: on %s, judge %s prefers what people had chosen in %.0f %% of %d "
                "pairs only (95 %% interval %.0f to %.0f %%). It may be right about the principle; "
                "look at some pairs before you trust its labels",
                *(name, judge.spec, 100 * records[name].accuracy, len(values)),
                *(100 * end for end in interval),
            )
    return records
