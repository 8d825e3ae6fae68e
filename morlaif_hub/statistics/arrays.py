"""Arrays as the other modules want them: finite, of the same shape, in the range that they need."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.errors import OptionError

FloatArray = NDArray[np.float64]


def finite(values: ArrayLike, name: str) -> FloatArray:
    """Return values as floats; an `OptionError` names the first that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise OptionError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def in_unit_range(values: ArrayLike) -> FloatArray:
    """Return probabilities as floats; an `OptionError` says what lies outside [0, 1]."""
    p = finite(values, "probabilities")
    if p.size and (p.min() < 0 or p.max() > 1):
        raise OptionError(f"probabilities must lie in [0, 1], got {p.min()} to {p.max()}")
    return p


def require_same_shape(**arrays: FloatArray) -> None:
    """Raise an `OptionError` that names the arrays unless all have the same shape."""
    if len({array.shape for array in arrays.values()}) > 1:
        got = ", ".join(str(array.shape) for array in arrays.values())
        raise OptionError(f"{' and '.join(arrays)} must have the same shape, got {got}")


def pair_weights(weights: ArrayLike | None, n: int) -> FloatArray:
    """Return the weights of n pairs, all 1 by default; an `OptionError` says what is wrong."""
    if n == 0:
        raise OptionError("a fit needs at least 1 pair, got none")
    if weights is None:
        return np.ones(n)
    w = finite(weights, "weights")
    if w.shape != (n,) or (w < 0).any() or not w.any():
        raise OptionError(f"weights must be {n} numbers >= 0, at least one above 0; got {w}")
    return w
