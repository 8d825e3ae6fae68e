"""Intervals, accuracies, calibration and small fits: pure functions on arrays.

Probabilities are those of the first response of a pair, "A", being preferred, so they lie in
[0, 1] and one half is a tie. Nothing here draws on global randomness: what resamples takes a seed.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.errors import OptionError

FloatArray = NDArray[np.float64]
ValidationVerdict = Literal["fit", "unproven", "wrong way"]

Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal: two sides of 95 %
SMALLEST_PROBABILITY = 1e-6  # how far p is kept from 0 and 1, so that log-odds are finite

_CANCELLED = 1e-9
_DRAWS_AT_ONCE = 1 << 22
_MAX_NEWTON_STEPS = 200
_TEMPERATURE_RANGE = 1e3


class Interval(NamedTuple):
    """The low and high end of a 95 % interval."""

    low: float
    high: float


def wilson_interval(successes: float, n: int) -> Interval:
    """Return the 95 % score interval of a proportion.

    Unlike the normal approximation it stays inside [0, 1] and keeps a width at 0 and n successes.

    Args:
        successes: How many of the n succeeded; a tie counts one half.
        n: Number of trials. None at all leave everything open: (0, 1).

    Raises:
        OptionError: If `successes` does not lie between 0 and n.

    Source:
        E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.

    Example:
        >>> "{:.3f} to {:.3f}".format(*wilson_interval(15, 20))
        '0.531 to 0.888'
    """
    if not 0 <= successes <= n:
        raise OptionError(f"successes must lie between 0 and n = {n}, got {successes}")
    if n == 0:
        return Interval(0.0, 1.0)
    share, z_squared = successes / n, Z_95**2
    centre = (share + z_squared / (2 * n)) / (1 + z_squared / n)
    half = np.sqrt(share * (1 - share) / n + z_squared / (4 * n**2)) * Z_95 / (1 + z_squared / n)
    # At 0 and n successes one end is exactly 0 or 1; rounding must not push it out.
    return Interval(max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def validation_verdict(interval: tuple[float, float]) -> ValidationVerdict:
    """Return what an accuracy's interval says about a judge or preference model.

    Returns:
        `fit` if it lies above one half, `wrong way` if below, `unproven` if it contains it.

    Example:
        >>> validation_verdict(wilson_interval(20, 24))
        'fit'
    """
    low, high = interval
    if low > 0.5:
        return "fit"
    return "wrong way" if high < 0.5 else "unproven"


def bootstrap_interval(
    values: ArrayLike, groups: ArrayLike, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Return the 95 % percentile interval of the mean of `values`, resampling whole groups.

    Pairs of one prompt are not independent, so the prompt is what is drawn. For a paired
    comparison pass the differences.

    Args:
        values: Shape (n,), finite.
        groups: The group of each value, such as its prompt's id; shape (n,). With a single group
            there is nothing to resample: both ends are the mean, and no spread is known.
        seed: Of the resampling; the same seed gives the same interval.
        resamples: How many times the groups are drawn.

    Raises:
        OptionError: If there are no values, one is not finite, or the shapes differ.

    Source:
        B. Efron, Annals of Statistics 7 (1979), 1-26; percentile interval, over clusters.

    Example:
        >>> bootstrap_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
        Interval(low=0.0, high=1.0)
    """
    numbers = _finite(values, "values")
    labels = np.asarray(groups)
    if numbers.size == 0 or labels.shape != numbers.shape:
        raise OptionError(
            "values and groups must be two lists of the same length, at least 1; "
            f"got shapes {numbers.shape} and {labels.shape}"
        )
    if resamples < 1:
        raise OptionError(f"resamples must be at least 1, got {resamples}")
    _, member = np.unique(labels, return_inverse=True)
    counts = np.bincount(member)
    sums = np.bincount(member, weights=numbers)
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // len(counts))  # bounds memory for large sets
    means = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(counts))
        drawn = generator.integers(len(counts), size=shape)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(low), float(high))


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
    d, p = _finite(differences, "differences"), _probabilities(probabilities)
    _require_same_shape(differences=d, probabilities=p)
    return np.asarray(0.5 + 0.5 * np.sign(d) * np.sign(p - 0.5))


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
    x_values, y_values = _finite(x, "x"), _finite(y, "y")
    _require_same_shape(x=x_values, y=y_values)
    first, second = _unit_deviations(x_values), _unit_deviations(y_values)
    if first is None or second is None:
        return None
    return float(np.clip(first @ second, -1.0, 1.0))


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10
) -> float:
    """Return how far probabilities lie from observed frequencies, on average, in [0, 1].

    Args:
        probabilities: Predicted probability that A is better; shape (n,), n >= 1.
        outcomes: 1 where A was better, 0 where B was, or any soft label; shape (n,).
        bins: Number of bins of equal width over [0, 1].

    Raises:
        OptionError: If there are no pairs, or a probability lies outside [0, 1].

    Source:
        C. Guo et al., "On calibration of modern neural networks", arXiv:1706.04599, equation 3,
        on the probability of one class.

    Example:
        >>> round(expected_calibration_error([0.8, 0.8, 0.8, 0.8], [1, 1, 1, 0]), 3)
        0.05
    """
    predicted, observed = _probabilities(probabilities), _finite(outcomes, "outcomes")
    _require_same_shape(probabilities=predicted, outcomes=observed)
    if predicted.size == 0 or bins < 1:
        raise OptionError(f"at least 1 pair and 1 bin are needed, got {predicted.size} and {bins}")
    gaps = np.bincount(calibration_bins(predicted, bins), weights=predicted - observed)
    return float(np.abs(gaps).sum() / predicted.size)


def calibration_bins(probabilities: ArrayLike, bins: int) -> NDArray[np.intp]:
    """Return each probability's bin, of `bins` bins of equal width; 1 belongs to the last."""
    return np.minimum((_probabilities(probabilities) * bins).astype(np.intp), bins - 1)


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
    p = np.clip(_probabilities(probabilities), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
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
    _require_same_shape(first=one, second=other)
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
    p = _probabilities(probabilities)
    sides = np.stack([p, 1 - p])
    logs = np.log2(sides, out=np.zeros_like(sides), where=sides > 0)  # 0 log 0 is 0
    return np.asarray(np.abs((sides * logs).sum(axis=0)))


def fit_logistic(
    features: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None, l2: float
) -> FloatArray:
    """Return the coefficients of a logistic regression without intercept, on soft labels.

    Without an intercept a pair and its swapped copy say the same, so which response is A does not
    matter. Minimised by Newton's method with halved steps: the summed cross-entropy plus
    l2 / 2 times the squared norm, so that `l2` is the inverse of scikit-learn's `C`.

    Args:
        features: Feature differences, A minus B; shape (n, d).
        probabilities: Probability that A is better; shape (n,).
        weights: Weight of each pair, shape (n,), >= 0; all 1 by default.
        l2: Penalty, > 0: it keeps the minimum finite where the labels can be separated.

    Returns:
        Shape (d,), in log-odds per unit of feature.

    Raises:
        OptionError: If a shape or value is not as above.

    Source:
        S. Boyd and L. Vandenberghe, "Convex Optimization" (2004), algorithm 9.5.

    Example:
        >>> fit_logistic([[1.0], [-1.0]], [0.75, 0.25], l2=1e-9).round(4).tolist()
        [1.0986]
    """
    x, p = _finite(features, "features"), _probabilities(probabilities)
    if x.ndim != 2 or p.shape != x.shape[:1]:
        raise OptionError(f"features must be (n, d), probabilities (n,); got {x.shape}, {p.shape}")
    if not l2 > 0:
        raise OptionError(f"l2 must be greater than 0, got {l2}")
    w = _pair_weights(weights, len(p))

    def loss(coefficients: FloatArray) -> float:
        margins = x @ coefficients
        cross_entropy = w @ (np.logaddexp(0.0, margins) - p * margins)
        return float(cross_entropy + l2 / 2 * coefficients @ coefficients)

    ridge = np.diag(np.full(x.shape[1], l2))
    coefficients = np.zeros(x.shape[1])
    for _ in range(_MAX_NEWTON_STEPS):
        fitted = sigmoid(x @ coefficients)
        gradient = x.T @ (w * (fitted - p)) + ridge @ coefficients
        hessian = (x.T * (w * fitted * (1 - fitted))) @ x + ridge
        step = np.asarray(np.linalg.solve(hessian, gradient), dtype=np.float64)
        size = _step_size(loss, coefficients, step, float(gradient @ step))
        coefficients = coefficients - size * step
        if size == 0.0:
            break
    return coefficients


def fit_temperature(
    differences: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Return the T that makes sigmoid(difference / T) the best probability, by cross-entropy.

    Args:
        differences: Score of A minus score of B; shape (n,).
        probabilities: Probability that A is better; shape (n,).
        weights: Weight of each pair, shape (n,), >= 0; all 1 by default.

    Returns:
        In units of the score; positive and finite. Between a thousandth and a thousand times the
        root mean square difference: the upper end says that the scores carry no information, or
        point the wrong way, and the lower that they are never wrong. 1 if all differences are 0.

    Source:
        Temperature scaling: C. Guo et al., arXiv:1706.04599, section 4.2.

    Example:
        >>> round(fit_temperature([3.0, -3.0], [0.75, 0.25]), 3)
        2.731
    """
    d, p = _finite(differences, "differences"), _probabilities(probabilities)
    _require_same_shape(differences=d, probabilities=p)
    w = _pair_weights(weights, len(p))
    scale = float(np.sqrt(np.mean(d**2)))
    if scale == 0.0:
        return 1.0
    # The loss is convex in 1 / T, so its slope changes sign once: bisect that, on log T.
    low, high = -np.log(_TEMPERATURE_RANGE), np.log(_TEMPERATURE_RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        slope = w @ (d * (sigmoid(d / (scale * np.exp(middle))) - p))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(scale * np.exp((low + high) / 2))


def _step_size(
    loss: Callable[[FloatArray], float], at: FloatArray, step: FloatArray, decrement: float
) -> float:
    """Halve a Newton step until it lowers the loss enough; 0 where rounding hides any gain."""
    here, size = loss(at), 1.0
    while decrement * size > 1e-15 * (1.0 + here):
        if loss(at - size * step) <= here - 0.25 * size * decrement:
            return size
        size /= 2
    return 0.0


def _pair_weights(weights: ArrayLike | None, n: int) -> FloatArray:
    if n == 0:
        raise OptionError("a fit needs at least 1 pair, got none")
    if weights is None:
        return np.ones(n)
    w = _finite(weights, "weights")
    if w.shape != (n,) or (w < 0).any() or not w.any():
        raise OptionError(f"weights must be {n} numbers >= 0, at least one above 0; got {w}")
    return w


def _unit_deviations(values: FloatArray) -> FloatArray | None:
    deviations = values - values.mean() if values.size else values
    spread = np.abs(deviations).max(initial=0.0)
    if values.size < 3 or spread <= 1e-12 * np.abs(values).max():
        return None
    deviations = deviations / spread  # so that squares neither overflow nor vanish
    return np.asarray(deviations / np.sqrt(deviations @ deviations))


def _probabilities(values: ArrayLike) -> FloatArray:
    p = _finite(values, "probabilities")
    if p.size and (p.min() < 0 or p.max() > 1):
        raise OptionError(f"probabilities must lie in [0, 1], got {p.min()} to {p.max()}")
    return p


def _require_same_shape(**arrays: FloatArray) -> None:
    if len({array.shape for array in arrays.values()}) > 1:
        got = ", ".join(str(array.shape) for array in arrays.values())
        raise OptionError(f"{' and '.join(arrays)} must have the same shape, got {got}")


def _finite(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise OptionError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array
