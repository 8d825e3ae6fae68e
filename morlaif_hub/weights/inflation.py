"""Collinearity: objectives whose weights cannot be told apart."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.errors import TrainingError
from morlaif_hub.statistics import FloatArray
from morlaif_hub.statistics.arrays import finite

_CONSTANT = 1e-6  # standard deviations of the score, far above rounding in float32
_COLLINEAR = 1e-8  # share of an objective's differences that the others leave unexplained


def variance_inflation(differences: ArrayLike, *, objectives: Sequence[str]) -> FloatArray:
    """Return each objective's variance inflation factor, 1 / (1 - R^2) given the others.

    Like the regression, R^2 has no intercept, so that swapping A and B changes nothing.

    Args:
        differences: Score differences, shape (pairs, objectives).
        objectives: Names of the columns.

    Returns:
        Shape (objectives,), >= 1.

    Raises:
        TrainingError: If an objective's differences are all zero, or a combination of others'.

    Source:
        D. W. Marquardt, Technometrics 12 (1970), 591-612.

    Example:
        >>> variance_inflation([[1, 1], [1, -1], [2, 1]], objectives=["a", "b"]).round(2).tolist()
        [1.29, 1.29]
    """
    x = finite(differences, "differences")
    spread = root_mean_square(x)
    if constant := [name for name, s in zip(objectives, spread, strict=True) if s <= _CONSTANT]:
        raise TrainingError(
            f"{', '.join(constant)} scored both responses of every pair the same, so no weight can "
            "be fitted; leave it out of the bank"
        )
    columns = x / spread
    factors = np.ones(len(spread))
    for i, name in enumerate(objectives):
        others = np.delete(columns, i, axis=1)
        share, *_ = np.linalg.lstsq(others, columns[:, i], rcond=None)
        unexplained = float(np.mean((columns[:, i] - others @ share) ** 2))
        if unexplained <= _COLLINEAR:
            rest = [other for other in objectives if other != name]
            partners = [o for o, s in zip(rest, share, strict=True) if abs(s) > 1e-3]
            raise TrainingError(
                f"the score differences of {name} are a combination of those of "
                f"{', '.join(partners)}, so their weights cannot be told apart; leave one of them "
                "out of the bank"
            )
        factors[i] = max(1.0, 1 / unexplained)
    return factors


def root_mean_square(x: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return that of each column, shape (objectives,), pairs weighted."""
    return np.asarray(np.sqrt(np.average(x**2, axis=0, weights=weights)))
