"""Pairs of responses: probabilities of preferring A, and what is said of many of them."""

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.statistics.arrays import (
    FloatArray,
    finite,
    in_unit_range,
    require_same_shape,
)
from morlaif_hub.statistics.intervals import Estimate, estimate_mean

SMALLEST_PROBABILITY = 1e-6  # how far p is kept from 0 and 1, so that log-odds are finite

_CANCELLED = 1e-9


def pairwise_accuracy(differences: ArrayLike, probabilities: ArrayLike) -> FloatArray:
    """Return, per pair, whether a score difference agrees with a label: 1, 0, or 0.5 for a tie.

    Args:
        differences: Score of A minus score of B; shape (n,).
        probabilities: Probability that A is better; shape (n,). One half is a tie, as is a
            difference of zero.

    Example:
        >>> pairwise_accuracy([2.0, -1.0, 0.0], [0.9, 0.8, 0.1]).tolist()
        [1.0, 0.0, 0.5]
    """
    d, p = finite(differences, "differences"), in_unit_range(probabilities)
    require_same_shape(differences=d, probabilities=p)
    return np.asarray(0.5 + 0.5 * np.sign(d) * np.sign(p - 0.5))


def estimate_accuracy(
    differences: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Return the share of pairs in which a score difference agrees with the label.

    Args:
        differences: Score of A minus score of B; shape (n,), n >= 1. A tie counts one half.
        probabilities: Probability that A is better; shape (n,). Leave out pairs with one half:
            nobody can be right about them, and each would count one half.
        groups: The prompt of each pair, which the interval resamples; by default each pair is
            one of its own.
        seed: Of the resampling.

    Raises:
        OptionError: If there are no pairs, a value is out of range, or the shapes differ.

    Source:
        `pairwise_accuracy`, averaged; the interval is that of `bootstrap_interval`.

    Example:
        >>> estimate_accuracy([2.0, -1.0, 1.0, 3.0], [0.9, 0.8, 1.0, 0.7]).value
        0.75
    """
    return estimate_mean(pairwise_accuracy(differences, probabilities), groups, seed=seed)


def position_bias(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0
) -> Estimate:
    """Return how much more often than half of the time the response shown first is preferred.

    Args:
        first: Probability of A when A was shown first; shape (n,), n >= 1.
        second: Probability of A when B was shown first; shape (n,). One half is a tie.
        groups: The prompt of each pair, which the interval resamples; by default each pair is
            one of its own.
        seed: Of the resampling.

    Returns:
        P(shown first is preferred) - 0.5, in [-0.5, 0.5]; 0 for a judge without order.

    Raises:
        OptionError: If there are no pairs, a value is out of range, or the shapes differ.

    Source:
        Both orders of each pair: L. Zheng et al., arXiv:2306.05685, section 3.4.

    Example:
        >>> position_bias([0.9, 0.8], [0.6, 0.1]).value
        0.25
    """
    one, other = in_unit_range(first), in_unit_range(second)
    require_same_shape(first=one, second=other)
    return estimate_mean((np.sign(one - 0.5) - np.sign(other - 0.5)) / 4, groups, seed=seed)


def correlation(x: ArrayLike, y: ArrayLike) -> float | None:
    """Return Pearson's correlation, in [-1, 1].

    Returns:
        None with fewer than three values, or where a side is constant up to rounding.

    Source:
        K. Pearson, Proceedings of the Royal Society of London 58 (1895), 240-242.

    Example:
        >>> round(correlation([1, 2, 3, 4], [2, 4, 6, 9]), 3)
        0.994
    """
    x_values, y_values = finite(x, "x"), finite(y, "y")
    require_same_shape(x=x_values, y=y_values)
    first, second = _unit_deviations(x_values), _unit_deviations(y_values)
    if first is None or second is None:
        return None
    return float(np.clip(first @ second, -1.0, 1.0))


def sigmoid(log_odds: ArrayLike) -> FloatArray:
    """Return the probability of log-odds, in [0, 1], without overflow."""
    # tanh saturates where exp would overflow, and gives exactly one half at zero.
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * np.asarray(log_odds, dtype=np.float64)))


def log_odds(probabilities: ArrayLike) -> FloatArray:
    """Return log(p / (1 - p)) in natural units; finite, since p is kept off 0 and 1.

    Example:
        >>> log_odds([0.5, 1.0]).round(2).tolist()
        [0.0, 13.82]
    """
    p = np.clip(in_unit_range(probabilities), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.asarray(np.log(p) - np.log1p(-p))


def combine_orders(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Return the probability of A, debiased: that of the mean log-odds of both orders.

    A judge that adds a constant to the log-odds of whichever response it sees first cancels out.

    Args:
        first: Probability of A when A was shown first; any shape.
        second: Probability of A when B was shown first; the same shape.

    Returns:
        The same shape; exactly one half where the two orders cancel.

    Source:
        Both orders averaged: H. Lee et al., RLAIF, arXiv:2309.00267.

    Example:
        >>> float(combine_orders(0.9, 0.1))
        0.5
    """
    one, other = log_odds(first), log_odds(second)
    require_same_shape(first=one, second=other)
    mean = (one + other) / 2
    # p and 1 - p are rounded on their way here; a tie has to be a tie all the same.
    return sigmoid(np.where(np.abs(mean) < _CANCELLED, 0.0, mean))


def entropy_bits(probabilities: ArrayLike) -> FloatArray:
    """Return the entropy of a choice between two, in bits: 1 at one half, 0 at certainty.

    Source:
        C. E. Shannon, "A mathematical theory of communication" (1948), section 6.

    Example:
        >>> entropy_bits([0.5, 1.0]).tolist()
        [1.0, 0.0]
    """
    p = in_unit_range(probabilities)
    sides = np.stack([p, 1 - p])
    logs = np.log2(sides, out=np.zeros_like(sides), where=sides > 0)  # 0 log 0 is 0
    return np.asarray(np.abs((sides * logs).sum(axis=0)))


def _unit_deviations(values: FloatArray) -> FloatArray | None:
    deviations = values - values.mean() if values.size else values
    spread = np.abs(deviations).max(initial=0.0)
    if values.size < 3 or spread <= 1e-12 * np.abs(values).max():
        return None
    deviations = deviations / spread  # so that squares neither overflow nor vanish
    return np.asarray(deviations / np.sqrt(deviations @ deviations))
