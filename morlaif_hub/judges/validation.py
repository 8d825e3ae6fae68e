"""Validation: is the better side of a principle's probes found?

One rule holds for judges and preference models alike: `fit` when the 95 % interval of the accuracy
lies above one half, `wrong way` when it lies below, `unproven` when it contains one half.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.comparisons import Comparison
from morlaif_hub.hub.manifest import PartRecord, ValidationRecord
from morlaif_hub.judges.base import Judge, Progress, Question, ask
from morlaif_hub.principles import Part, Principle
from morlaif_hub.statistics import correlation, log_odds, validation_verdict, wilson_interval

PARTS: tuple[Part, ...] = ("longer", "shorter", "equal")


def validate_judge(
    judge: Judge, principles: Sequence[Principle], *, progress: Progress | None = None
) -> dict[str, ValidationRecord]:
    """Return how well a judge does on each principle's probes, all asked in one go.

    Returns:
        By the principles' names. A principle without probes is left out: nothing was measured,
        so there is no verdict on it, not even `unproven`.

    Raises:
        JudgeError: If the judge gives no usable answer.
    """
    questions = [
        Question(comparison, principle)
        for principle in principles
        for comparison in probe_comparisons(principle)
    ]
    verdicts = iter(ask(judge, questions, progress=progress))
    records = {}
    for principle in principles:
        if not principle.probes:
            continue
        answers = [next(verdicts) for _ in principle.probes]
        records[principle.name] = probe_record(
            principle,
            log_odds([answer.probability_a for answer in answers]),
            first_share=float(np.mean([answer.first_share for answer in answers]))
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
