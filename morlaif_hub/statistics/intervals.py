"""Intervals: how much a proportion or a mean may be off by chance."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.errors import OptionError
from morlaif_hub.statistics.arrays import FloatArray, finite

ValidationVerdict = Literal["fit", "unproven", "wrong way"]

Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal: two sides of 95 %

_DRAWS_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """The low and high end of a 95 % interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its 95 % interval, and the number of values that it rests on."""

    value: float
    interval: Interval
    n: int


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
    numbers = finite(values, "values")
    member = group_members(groups, numbers)
    counts = np.bincount(member)
    sums = np.bincount(member, weights=numbers)
    means = [
        sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        for drawn in resampled_groups(len(counts), seed=seed, resamples=resamples)
    ]
    return central_interval(np.concatenate(means))


def estimate_mean(
    values: ArrayLike, groups: ArrayLike | None = None, *, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Return the mean of values with the interval of `bootstrap_interval`.

    Args:
        values: Shape (n,), n >= 1, finite.
        groups: The group of each value, shape (n,); by default each is one of its own.
        seed: Of the resampling.
        resamples: How many times the groups are drawn.

    Raises:
        OptionError: If there are no values, one is not finite, or the shapes differ.

    Example:
        >>> estimate_mean([1, 1, 0, 0], ["a", "a", "b", "b"])
        Estimate(value=0.5, interval=Interval(low=0.0, high=1.0), n=4)
    """
    numbers = finite(values, "values")
    members = np.arange(numbers.size) if groups is None else groups
    interval = bootstrap_interval(numbers, members, seed=seed, resamples=resamples)
    return Estimate(float(numbers.mean()), interval, numbers.size)


def estimate_means(
    columns: ArrayLike, groups: ArrayLike, *, seed: int = 0, resamples: int = 2000
) -> list[Estimate]:
    """Return the mean of every column, with intervals that come from one resampling of groups.

    Each is what `estimate_mean` returns for the column alone; drawing once for all of them is
    several times as fast, which counts where there are hundreds of thousands of groups.

    Args:
        columns: Shape (n, columns), n >= 1, finite.
        groups: The group of each row, shape (n,).
        seed: Of the resampling.
        resamples: How many times the groups are drawn.

    Raises:
        OptionError: If there are no rows, a value is not finite, or the shapes differ.

    Source:
        As `bootstrap_interval`.

    Example:
        >>> [estimate.value for estimate in estimate_means([[1, 0], [0, 0]], ["a", "b"])]
        [0.5, 0.0]
    """
    table = finite(columns, "columns")
    if table.ndim != 2:
        raise OptionError(f"columns must have two dimensions, got {table.ndim}")
    member = group_members(groups, np.zeros(len(table)))
    counts = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=column) for column in table.T], axis=1)
    drawn_means = []
    for drawn in resampled_groups(len(counts), seed=seed, resamples=resamples):
        times = times_drawn(drawn)
        drawn_means.append((times @ sums) / (times @ counts)[:, None])
    draws = np.concatenate(drawn_means)
    return [
        Estimate(float(column.mean()), central_interval(drawn), len(table))
        for column, drawn in zip(table.T, draws.T, strict=True)
    ]


def times_drawn(drawn: NDArray[np.int64]) -> FloatArray:
    """Return how often each group was drawn, shape (resamples, groups), for draws of that shape."""
    rows, count = drawn.shape
    cells = drawn + count * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def group_members(groups: ArrayLike, values: FloatArray) -> NDArray[np.intp]:
    """Return the number, from 0, of each value's group, shape (n,).

    Raises:
        OptionError: If there are no values, or not as many as groups.
    """
    labels = np.asarray(groups)
    if values.size == 0 or labels.shape != values.shape:
        raise OptionError(
            "values and groups must be two lists of the same length, at least 1; "
            f"got shapes {values.shape} and {labels.shape}"
        )
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.intp)


def resampled_groups(count: int, *, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yield bootstrap draws of `count` groups, some resamples at a time to bound memory.

    Yields:
        Numbers of groups, shape (resamples of this part, count).

    Raises:
        OptionError: If `resamples` is below 1.
    """
    if resamples < 1:
        raise OptionError(f"resamples must be at least 1, got {resamples}")
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, rows):
        yield generator.integers(count, size=(min(rows, resamples - start), count))


def central_interval(draws: FloatArray) -> Interval:
    """Return what holds the middle 95 % of draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(low), float(high))
