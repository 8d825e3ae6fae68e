"""What makes scores of different preference models comparable, and how good they are."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison
from morlaif_hub.hub.manifest import Calibration, Evaluation, Split
from morlaif_hub.statistics import (
    bootstrap_interval,
    correlation,
    fit_temperature,
    pairwise_accuracy,
)

Array = NDArray[np.float64]
EQUAL_LENGTH_WORDS = 2


def calibrate(score_a: Array, score_b: Array, probabilities: Array) -> Calibration:
    """Return the calibration of raw scores on held-out pairs.

    Args:
        score_a: Raw scores of the responses A, shape (pairs,).
        score_b: Of the responses B.
        probabilities: Probability that A is better, shape (pairs,).
    """
    scores = np.concatenate([score_a, score_b])
    return Calibration(
        mean=float(scores.mean()),
        std=float(scores.std()) or 1.0,
        temperature=fit_temperature(score_a - score_b, probabilities),
        n=len(scores),
    )


def evaluate_pairs(
    comparisons: Sequence[Comparison],
    differences: Array,
    probabilities: Array,
    *,
    split: Split,
    longer_is_better: bool,
) -> tuple[Evaluation, ...]:
    """Return the accuracy on all pairs and on those of nearly equal length.

    A tie counts one half. Intervals resample prompts. The length-only rule prefers the response
    with more, or fewer, words, whichever was right on the training pairs.

    Args:
        comparisons: The pairs.
        differences: Score of A minus score of B, shape (pairs,).
        probabilities: Probability that A is better, shape (pairs,).
        split: Which split the pairs are of.
        longer_is_better: The direction of the length-only rule.
    """
    words = word_differences(comparisons)
    rule = words if longer_is_better else -words
    equal = np.abs(words) <= EQUAL_LENGTH_WORDS
    chosen = {"accuracy": np.ones(len(words), bool), "accuracy_equal_length": equal}
    evaluations = []
    for metric, rows in chosen.items():
        if not rows.any():
            continue
        right = pairwise_accuracy(differences[rows], probabilities[rows])
        baseline = pairwise_accuracy(rule[rows], probabilities[rows])
        prompts = [c.prompt_id for c, kept in zip(comparisons, rows, strict=True) if kept]
        interval = bootstrap_interval(right, prompts)
        evaluations.append(
            Evaluation(
                split=split,
                metric=metric,
                value=float(right.mean()),
                interval=(interval.low, interval.high),
                n=int(rows.sum()),
                length_baseline=float(baseline.mean()),
            )
        )
    return tuple(evaluations)


def word_differences(comparisons: Sequence[Comparison]) -> Array:
    """Return the number of words of response A minus that of B, shape (pairs,)."""
    count: Callable[[str], int] = lambda text: len(text.split())  # noqa: E731
    return np.array([count(c.response_a) - count(c.response_b) for c in comparisons], float)


def longer_wins(comparisons: Sequence[Comparison], probabilities: Array) -> bool:
    """Whether the longer response is the better one in more of the pairs."""
    return bool(np.sum(np.sign(word_differences(comparisons)) * (probabilities - 0.5)) > 0)


def length_correlation(comparisons: Sequence[Comparison], differences: Array) -> float | None:
    """Return the correlation of score differences with differences in words, in [-1, 1]."""
    return correlation(differences, word_differences(comparisons))
