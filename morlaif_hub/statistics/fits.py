"""Small fits on soft labels: a logistic regression, and a temperature."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.errors import OptionError
from morlaif_hub.statistics.arrays import (
    FloatArray,
    finite,
    in_unit_range,
    pair_weights,
    require_same_shape,
)
from morlaif_hub.statistics.pairs import sigmoid

_MAX_NEWTON_STEPS = 200
_TEMPERATURE_RANGE = 1e3


def fit_logistic(
    features: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    l2: float,
    start: ArrayLike | None = None,
    tolerance: float = 1e-15,
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
        start: Coefficients near the minimum, from which it is reached sooner.
        tolerance: How much a step must still promise to lower the loss, relative to 1 and the loss.

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
    x, p = finite(features, "features"), in_unit_range(probabilities)
    if x.ndim != 2 or p.shape != x.shape[:1]:
        raise OptionError(f"features must be (n, d), probabilities (n,); got {x.shape}, {p.shape}")
    if not l2 > 0:
        raise OptionError(f"l2 must be greater than 0, got {l2}")
    w = pair_weights(weights, len(p))

    def loss(coefficients: FloatArray) -> float:
        margins = x @ coefficients
        cross_entropy = w @ (np.logaddexp(0.0, margins) - p * margins)
        return float(cross_entropy + l2 / 2 * coefficients @ coefficients)

    ridge = l2 * np.eye(x.shape[1])
    coefficients = np.zeros(x.shape[1]) if start is None else finite(start, "start")
    for _ in range(_MAX_NEWTON_STEPS):
        fitted = sigmoid(x @ coefficients)
        gradient = x.T @ (w * (fitted - p)) + ridge @ coefficients
        hessian = (x.T * (w * fitted * (1 - fitted))) @ x + ridge
        step = np.asarray(np.linalg.solve(hessian, gradient), dtype=np.float64)
        size = _step_size(loss, coefficients, step, float(gradient @ step), tolerance)
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
    d, p = finite(differences, "differences"), in_unit_range(probabilities)
    require_same_shape(differences=d, probabilities=p)
    w = pair_weights(weights, len(p))
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
    loss: Callable[[FloatArray], float],
    at: FloatArray,
    step: FloatArray,
    decrement: float,
    tolerance: float,
) -> float:
    """Halve a Newton step until it lowers the loss enough; 0 where no gain is left to see."""
    here, size = loss(at), 1.0
    while decrement * size > tolerance * (1.0 + here):
        if loss(at - size * step) <= here - 0.25 * size * decrement:
            return size
        size /= 2
    return 0.0
