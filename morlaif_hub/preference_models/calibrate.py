"""What makes scores of different preference models comparable, and how good they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison
from morlaif_hub.hub.manifest import Calibration, Evaluation, Split
from morlaif_hub.preference_models.preferences import Preferences
from morlaif_hub.statistics import (
    Estimate,
    calibration_error,
    correlation,
    cross_fitted_temperatures,
    estimate_accuracy,
    fit_temperature,
    pairwise_accuracy,
    sigmoid,
)

Array = NDArray[np.float64]
EQUAL_LENGTH_WORDS = 2
CALIBRATION_ERROR = "calibration_error"
"""The metric's name in a manifest."""


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
        prompts = [c.prompt_id for c, kept in zip(comparisons, rows, strict=True) if kept]
        accuracy = estimate_accuracy(differences[rows], probabilities[rows], prompts)
        baseline = float(pairwise_accuracy(rule[rows], probabilities[rows]).mean())
        evaluations.append(_evaluation(split, metric, accuracy, baseline))
    return tuple(evaluations)


def evaluate_calibration(
    comparisons: Sequence[Comparison], differences: Array, probabilities: Array, *, split: Split
) -> tuple[Evaluation, ...]:
    """Return how far the probabilities that scores give lie from the labels.

    A temperature that is judged on the pairs it was fitted to looks better than it is. So each
    pair's is fitted on other prompts; `calibrate` then fits the one that is kept on all of them.

    Args:
        comparisons: The pairs.
        differences: Score of A minus score of B, shape (pairs,).
        probabilities: Probability that A is better, shape (pairs,); ties are measured too.
        split: Which split the pairs are of.

    Returns:
        One evaluation, none where all pairs are of one prompt.
    """
    prompts = [c.prompt_id for c in comparisons]
    if len(set(prompts)) < 2:
        return ()
    temperatures = cross_fitted_temperatures(differences, probabilities, prompts)
    error = calibration_error(sigmoid(differences / temperatures), probabilities, prompts)
    return (_evaluation(split, CALIBRATION_ERROR, error, None),)


def evaluate_held_out(given: Preferences, score_a: Array, score_b: Array) -> tuple[Evaluation, ...]:
    """Return all that is measured of scores on held-out pairs: accuracies, then calibration.

    Args:
        given: The labelled pairs. Ties count for the calibration alone, and the direction of the
            length-only rule is that of the training pairs.
        score_a: Raw scores of the responses A of the held-out pairs, shape (pairs,).
        score_b: Of the responses B.
    """
    test, differences = given.held_out, score_a - score_b
    decided = test.probabilities != 0.5
    accuracies = evaluate_pairs(
        [c for c, kept in zip(test.comparisons, decided, strict=True) if kept],
        differences[decided],
        test.probabilities[decided],
        split="test",
        longer_is_better=longer_wins(given.decided.comparisons, given.decided.probabilities),
    )
    calibration = evaluate_calibration(
        test.comparisons, differences, test.probabilities, split="test"
    )
    return (*accuracies, *calibration)


def _evaluation(
    split: Split, metric: str, estimate: Estimate, length_baseline: float | None
) -> Evaluation:
    return Evaluation(
        split=split,
        metric=metric,
        value=estimate.value,
        interval=(estimate.interval.low, estimate.interval.high),
        n=estimate.n,
        length_baseline=length_baseline,
    )


def word_differences(comparisons: Sequence[Comparison]) -> Array:
    """Return the number of words of response A minus that of B, shape (pairs,)."""
    words = ((len(c.response_a.split()), len(c.response_b.split())) for c in comparisons)
    return np.array([a - b for a, b in words], float)


def longer_wins(comparisons: Sequence[Comparison], probabilities: Array) -> bool:
    """Whether the longer response is the better one in more of the pairs."""
    return bool(np.sum(np.sign(word_differences(comparisons)) * (probabilities - 0.5)) > 0)


def length_correlation(comparisons: Sequence[Comparison], differences: Array) -> float | None:
    """Return the correlation of score differences with differences in words, in [-1, 1]."""
    return correlation(differences, word_differences(comparisons))
