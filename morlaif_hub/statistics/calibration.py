"""Calibration: how far probabilities lie from what happens, and temperatures to put them right.

A mean of absolute values never forgets noise: with 500 pairs and ten bins of equal width, a
perfectly calibrated model is reported to be off by about 0.045. `calibration_error` subtracts what
noise is expected to add in each bin. About half of it stays where there is no error at all, 0.02
with 500 pairs, so that the estimate errs to the high side; an error of 0.04 is then right on
average, as is one of 0.08 with 100 pairs.
The bootstrap adds noise once more, so that a percentile interval lies too high as a whole.
`calibration_error` uses what noise can do: the true error is at least the observed one minus the
size of the noise, and on average it is not above the observed one. `benchmarks/calibration.py`
measures both.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.errors import OptionError
from morlaif_hub.statistics.arrays import (
    FloatArray,
    finite,
    in_unit_range,
    require_same_shape,
)
from morlaif_hub.statistics.fits import fit_temperature
from morlaif_hub.statistics.intervals import (
    Estimate,
    Interval,
    central_interval,
    group_members,
    resampled_groups,
    times_drawn,
)

FOLDS = 5
"""Of prompts: temperatures are fitted on four fifths, and judged on the other fifth."""
_FEWEST_BINS, _MOST_BINS = 5, 15
_PAIRS_PER_BIN = 400  # from two thousand pairs on; fewer pairs have five bins
_FEWEST_PER_BIN = 5
_SAME_CONFIDENCE = 9  # decimals: A and B swapped must not tell two confidences apart


def calibration_error(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """Return the expected calibration error of probabilities for pairs, less what chance adds.

    Which response is called A is an accident, so a pair counts by its confidence, the probability
    of the side that is predicted, between 0.5 and 1; swapping A and B changes nothing. Confidences
    are put into bins of equal mass: 5 of them, from 2000 pairs on one per 400 pairs, 15 at most.
    Mean confidence minus mean outcome is the gap of a bin, and the expected effect on its size of
    noise, as large as the spread between groups shows, is subtracted.

    Args:
        probabilities: Predicted probability that A is better; shape (n,), n >= 1.
        outcomes: 1 where A was better, 0 where B was, or any soft label; shape (n,).
        groups: The prompt of each pair, whose pairs are not independent; by default each pair is
            one of its own. With a single one no noise is known, and nothing is subtracted.
        seed: Of the resampling.
        resamples: How many times the groups are drawn.

    Returns:
        In [0, 1]. The interval resamples groups; the bins stay as they are.

    Raises:
        OptionError: If there are no pairs, a value lies outside [0, 1], or the shapes differ.

    Source:
        A. Kumar et al., arXiv:1909.10155: a normal distribution per bin, and the expected
        absolute value minus the observed one as the bias. R. Roelofs et al., arXiv:2012.08668,
        find this and equal mass the least biased. The error is C. Guo et al., arXiv:1706.04599,
        equation 3. The interval is ours: the triangle inequality on bootstrapped gaps.

    Example:
        >>> confident, right = [0.9] * 60, [1.0, 0.0] * 30
        >>> round(calibration_error(confident, right).value, 2)
        0.4
    """
    predicted, observed = in_unit_range(probabilities), in_unit_range(outcomes)
    require_same_shape(probabilities=predicted, outcomes=observed)
    member = group_members(np.arange(predicted.size) if groups is None else groups, predicted)
    table = _gap_table(predicted, observed, member)
    share = table.share()
    plain = float(share @ np.abs(table.gaps()))
    value = max(0.0, plain - float(share @ _noise_on_sizes(table)))
    size, noise = _drawn_errors(table, seed=seed, resamples=resamples)
    low = plain - central_interval(noise).high
    high = plain + central_interval(size).high - float(size.mean())
    interval = Interval(max(0.0, min(value, low)), min(1.0, max(value, high)))
    return Estimate(value, interval, predicted.size)


def cross_fitted_temperatures(
    differences: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> FloatArray:
    """Return a temperature for each pair that was fitted without its group.

    What a temperature is judged on must not have shaped it. Groups are put into folds at random,
    and a fold's pairs get the temperature that fits the other folds.

    Args:
        differences: Score of A minus score of B; shape (n,).
        probabilities: Probability that A is better; shape (n,).
        groups: The prompt of each pair, shape (n,); at least two different ones.
        folds: At least two; no more than there are groups are used.
        seed: Of the folds, whatever the order of the pairs.

    Returns:
        Shape (n,), in units of the score.

    Raises:
        OptionError: If there is one group only, fewer than two folds, or a shape is not as above.

    Source:
        Temperature scaling: C. Guo et al., arXiv:1706.04599, section 4.2; cross-fitting: M. Stone,
        Journal of the Royal Statistical Society B 36 (1974), 111-147.

    Example:
        >>> differences, labels = [3.0, -3.0, 3.0, -3.0], [0.75, 0.25, 0.75, 0.25]
        >>> cross_fitted_temperatures(differences, labels, list("aabb")).round(3).tolist()
        [2.731, 2.731, 2.731, 2.731]
    """
    d, p = finite(differences, "differences"), in_unit_range(probabilities)
    require_same_shape(differences=d, probabilities=p)
    member = group_members(groups, d)
    count = int(member.max()) + 1
    if count < 2 or folds < 2:
        raise OptionError(f"at least 2 groups and 2 folds are needed, got {count} and {folds}")
    order = np.random.default_rng(seed).permutation(count)
    fold = order[member] % min(folds, count)
    temperatures = np.empty(d.shape)
    for held_out in np.unique(fold):
        inside = fold == held_out
        temperatures[inside] = fit_temperature(d[~inside], p[~inside])
    return temperatures


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
    predicted, observed = in_unit_range(probabilities), finite(outcomes, "outcomes")
    require_same_shape(probabilities=predicted, outcomes=observed)
    if predicted.size == 0 or bins < 1:
        raise OptionError(f"at least 1 pair and 1 bin are needed, got {predicted.size} and {bins}")
    gaps = np.bincount(calibration_bins(predicted, bins), weights=predicted - observed)
    return float(np.abs(gaps).sum() / predicted.size)


def calibration_bins(probabilities: ArrayLike, bins: int) -> NDArray[np.intp]:
    """Return each probability's bin, of `bins` bins of equal width; 1 belongs to the last."""
    return np.minimum((in_unit_range(probabilities) * bins).astype(np.intp), bins - 1)


class _GapTable(NamedTuple):
    """Sums of confidence minus outcome, and numbers of pairs; each of shape (groups, bins)."""

    sums: FloatArray
    counts: FloatArray

    def gaps(self) -> FloatArray:
        """Mean confidence minus mean outcome, shape (bins,)."""
        return np.asarray(self.sums.sum(axis=0) / self.counts.sum(axis=0))

    def share(self) -> FloatArray:
        """Of the pairs in each bin, shape (bins,)."""
        return np.asarray(self.counts.sum(axis=0) / self.counts.sum())


def _gap_table(predicted: FloatArray, observed: FloatArray, member: NDArray[np.intp]) -> _GapTable:
    confidence = np.maximum(predicted, 1 - predicted)
    # At one half neither side is predicted: both orders of the responses, averaged.
    towards = np.sign(predicted - 0.5)
    outcome = 0.5 + towards * (observed - 0.5)
    which, bins = _equal_mass_bins(confidence)
    cell, shape = member * bins + which, (int(member.max()) + 1, bins)

    def table(weights: FloatArray) -> FloatArray:
        sums = np.bincount(cell, weights=weights, minlength=shape[0] * bins)
        return np.asarray(sums, dtype=np.float64).reshape(shape)

    return _GapTable(table(confidence - outcome), table(np.ones(cell.shape)))


def _equal_mass_bins(confidence: FloatArray) -> tuple[NDArray[np.intp], int]:
    """Return each pair's bin and how many bins there are; equal confidences share a bin."""
    n = confidence.size
    wanted = min(max(_FEWEST_BINS, n // _PAIRS_PER_BIN), _MOST_BINS, max(1, n // _FEWEST_PER_BIN))
    rounded = confidence.round(_SAME_CONFIDENCE)
    _, place, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    filled, which = np.unique((middle * wanted / n).astype(np.intp)[place], return_inverse=True)
    return which.astype(np.intp), len(filled)


def _noise_on_sizes(table: _GapTable) -> FloatArray:
    """Return how much larger than the true one noise makes the size of each gap on average."""
    pairs, gaps = table.counts.sum(axis=0), table.gaps()
    groups = (table.counts > 0).sum(axis=0)
    # Whole groups vary, not pairs; a bin with a single one says nothing about that.
    spread = ((table.sums - gaps * table.counts) ** 2).sum(axis=0)
    variance = spread * np.where(groups > 1, groups / np.maximum(groups - 1, 1), 0.0)
    errors = np.sqrt(variance) / pairs
    return np.array([_mean_absolute(g, e) - abs(g) for g, e in zip(gaps, errors, strict=True)])


def _drawn_errors(table: _GapTable, *, seed: int, resamples: int) -> tuple[FloatArray, FloatArray]:
    """Return the error of bootstrap samples, and of how they differ from the sample; (resamples,).

    The second is what noise alone looks like: the gaps of a calibrated model.
    """
    sizes, noise = [], []
    for drawn in resampled_groups(len(table.counts), seed=seed, resamples=resamples):
        times = times_drawn(drawn)
        counts = times @ table.counts
        share = counts / counts.sum(axis=1, keepdims=True)
        gaps = (times @ table.sums) / counts.sum(axis=1, keepdims=True)
        sizes.append(np.abs(gaps).sum(axis=1))
        noise.append(np.abs(gaps - share * table.gaps()).sum(axis=1))
    return np.concatenate(sizes), np.concatenate(noise)


def _mean_absolute(mean: float, deviation: float) -> float:
    """Return the expected absolute value of a normal variable."""
    if deviation == 0.0:
        return abs(mean)
    ratio = mean / deviation
    density = math.sqrt(2 / math.pi) * math.exp(-ratio * ratio / 2)
    return float(deviation * density + mean * math.erf(ratio / math.sqrt(2)))
