"""Fitting weights: a logistic regression, its penalty, its intervals and its quality."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.errors import OptionError, TrainingError
from morlaif_hub.statistics import (
    FloatArray,
    Interval,
    cross_fitted_temperatures,
    fit_logistic,
    pairwise_accuracy,
)
from morlaif_hub.statistics.arrays import finite, in_unit_range
from morlaif_hub.statistics.intervals import central_interval, group_members, resampled_groups
from morlaif_hub.weights.comparison import over_prompts
from morlaif_hub.weights.inflation import root_mean_square, variance_inflation
from morlaif_hub.weights.result import PENALTIES, Quality, WeightFit

FOLDS = 5
"""Of prompts: what is measured on a fifth of them was fitted on the others."""
FEWEST_PAIRS, PAIRS_PER_OBJECTIVE, FEWEST_PROMPTS = 20, 10, 2 * FOLDS
"""Ties do not count. Ten for each coefficient: P. Peduzzi et al., Journal of Clinical Epidemiology
49 (1996), 1373-1379."""

_FEWEST_RESAMPLES, _MOST_RESAMPLES = 200, 1000
_WORK = 2e9  # resamples * pairs * objectives^2 that are spent on intervals: minutes at most

Progress = Callable[[str, int, int], None]
"""Told of a stage in words, how much of it is done and of how much."""


def fit_weights(
    differences: ArrayLike,
    probabilities: ArrayLike,
    prompts: Sequence[str],
    *,
    objectives: Sequence[str],
    seed: int = 0,
    progress: Progress | None = None,
) -> WeightFit:
    """Return the weights that best tell labels by a weighted sum of score differences.

    The penalty is the one with the lowest log-loss on prompts that were left out. Intervals are
    percentiles over prompts resampled 1000 times, or fewer, down to 200, for very many pairs.

    Args:
        differences: Calibrated score of A minus that of B, shape (pairs, objectives).
        probabilities: Probability that A is better: 1 and 0 for people's choices, in between for
            a judge's verdicts, one half for a tie; shape (pairs,).
        prompts: An id of each pair's prompt; pairs of one prompt are not independent.
        objectives: Names of the columns.
        seed: Of folds and resampling.
        progress: Told how far the fit is.

    Raises:
        OptionError: If a shape, a name or a value is not as above.
        TrainingError: As `check_enough` and `variance_inflation`, or if the labels have nothing to
            do with any objective.

    Example:
        >>> differences, prompts = [[1.0, 0.5], [-1.0, 1.0]] * 24, list(map(str, range(48)))
        >>> fit = fit_weights(differences, [0.8, 0.4] * 24, prompts, objectives=["a", "b"])
        >>> fit.weights.round(1).tolist()
        [0.6, 0.4]
    """
    names = tuple(objectives)
    pairs = _checked(differences, probabilities, prompts, names)
    inflation = variance_inflation(pairs.differences, objectives=names)
    tell = progress or (lambda *_: None)
    fold = np.random.default_rng(seed).permutation(pairs.prompts)[pairs.member] % FOLDS
    held_out = _cross_fitted(pairs, fold, tell)
    quality = _quality(pairs, held_out, prompts, seed)
    l2 = _best_penalty(pairs, fold)
    coefficients = _fit(pairs.differences, pairs.probabilities, l2=l2)
    scale = _scale(coefficients, names)
    return WeightFit(
        objectives=names,
        weights=_normalised(coefficients),
        intervals=_intervals(pairs, coefficients, l2, seed, tell),
        inflation=inflation,
        scale=scale,
        l2=l2,
        quality=quality,
        held_out_weights=_normalised(held_out),
        pairs=len(fold),
        prompts=pairs.prompts,
        one_sided=_one_sided(pairs.probabilities),
    )


def check_enough(probabilities: ArrayLike, prompts: Sequence[str], *, objectives: int) -> None:
    """Check that labels are enough to fit weights on, before anything is scored.

    Args:
        probabilities: Probability that A is better, one half for a tie; shape (pairs,).
        prompts: An id of each pair's prompt.
        objectives: How many weights there will be.

    Raises:
        TrainingError: If all labels are ties, or there are too few pairs or prompts; the message
            says how many are needed.
    """
    p = in_unit_range(probabilities)
    decided = int((p != 0.5).sum())
    if len(p) and not decided:
        raise TrainingError(f"the labels of all {len(p)} pairs are ties, which say nothing")
    needed = max(FEWEST_PAIRS, PAIRS_PER_OBJECTIVE * objectives)
    count = len(set(prompts))
    if decided < needed or count < FEWEST_PROMPTS:
        raise TrainingError(
            f"{decided} labelled pairs that are no ties, of {count} prompts, are too few: weights "
            f"for {objectives} objectives need at least {needed} pairs and {FEWEST_PROMPTS} prompts"
        )


class _Pairs(NamedTuple):
    """What is fitted on: differences, probabilities, and the number of each pair's prompt."""

    differences: FloatArray
    probabilities: FloatArray
    member: NDArray[np.intp]

    @property
    def prompts(self) -> int:
        return int(self.member.max()) + 1


def _checked(
    differences: ArrayLike, probabilities: ArrayLike, prompts: Sequence[str], names: Sequence[str]
) -> _Pairs:
    x, p = finite(differences, "differences"), in_unit_range(probabilities)
    if x.ndim != 2 or p.shape != x.shape[:1] or len(prompts) != len(p):
        raise OptionError(
            "differences must be (pairs, objectives), probabilities and prompts (pairs,); got "
            f"{x.shape}, {p.shape}, ({len(prompts)},)"
        )
    if len(names) != x.shape[1] or len(set(names)) != len(names) or not names:
        raise OptionError(
            f"objectives must be {x.shape[1]} different names, one per column of differences, got "
            f"{', '.join(names) or 'none'}"
        )
    check_enough(p, prompts, objectives=len(names))
    return _Pairs(x, p, group_members(prompts, p))


def _fit(
    x: FloatArray, p: FloatArray, *, l2: float, weights: FloatArray | None = None
) -> FloatArray:
    """Return coefficients in log-odds per unit of score, however it is scaled."""
    spread = root_mean_square(x, weights)
    spread[spread == 0] = 1.0  # of a part of the pairs an objective may say nothing
    return fit_logistic(x / spread, p, weights=weights, l2=l2) / spread


def _loss(log_odds: FloatArray, p: FloatArray) -> FloatArray:
    """Return each pair's cross-entropy in nats."""
    return np.asarray(np.logaddexp(0.0, log_odds) - p * log_odds)


def _best_penalty(pairs: _Pairs, fold: NDArray[np.intp]) -> float:
    """Return the penalty with the lowest log-loss on folds that were left out."""
    x, p, _ = pairs
    losses = dict.fromkeys(PENALTIES, 0.0)
    for l2 in PENALTIES:
        for left_out in np.unique(fold):
            out = fold == left_out
            coefficients = _fit(x[~out], p[~out], l2=l2)
            losses[l2] += float(_loss(x[out] @ coefficients, p[out]).sum())
    return min(losses, key=lambda l2: losses[l2])


def _cross_fitted(pairs: _Pairs, fold: NDArray[np.intp], tell: Progress) -> FloatArray:
    """Return coefficients for each pair that neither it nor its fold had a part in."""
    coefficients = np.empty_like(pairs.differences)
    for left_out in range(FOLDS):
        tell("cross-validating weights", left_out, FOLDS)
        out = fold == left_out
        inside = _Pairs(*(part[~out] for part in pairs))
        l2 = _best_penalty(inside, fold[~out])
        coefficients[out] = _fit(inside.differences, inside.probabilities, l2=l2)
    return coefficients


def _quality(pairs: _Pairs, coefficients: FloatArray, prompts: Sequence[str], seed: int) -> Quality:
    x, p, _ = pairs
    fitted, equal = (x * coefficients).sum(axis=1), x.mean(axis=1)
    decided = p != 0.5
    groups = np.asarray(prompts)[decided]
    temperatures = cross_fitted_temperatures(equal, p, prompts, folds=FOLDS, seed=seed)
    right = [pairwise_accuracy(d[decided], p[decided]) for d in (fitted, equal)]
    return Quality(
        accuracy=over_prompts(right[0], groups, seed=seed),
        equal_accuracy=over_prompts(right[1], groups, seed=seed),
        gain=over_prompts(right[0] - right[1], groups, seed=seed),
        log_loss=float(_loss(fitted, p).mean()),
        equal_log_loss=float(_loss(equal / temperatures, p).mean()),
    )


def _intervals(
    pairs: _Pairs, coefficients: FloatArray, l2: float, seed: int, tell: Progress
) -> tuple[Interval, ...]:
    x, p, member = pairs
    affordable = int(_WORK / (x.size * x.shape[1]))
    resamples = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, affordable))
    draws: list[FloatArray] = []
    for part in resampled_groups(pairs.prompts, seed=seed, resamples=resamples):
        for drawn in part:
            if len(draws) % 10 == 0:
                tell("resampling prompts", len(draws), resamples)
            times = np.bincount(drawn, minlength=pairs.prompts)[member].astype(float)
            kept = times > 0
            draws.append(_normalised(_fit(x[kept], p[kept], l2=l2, weights=times[kept])))
    tell("resampling prompts", resamples, resamples)
    found = [central_interval(column) for column in np.array(draws).T]
    weights = _normalised(coefficients).tolist()  # a weight lies in its own interval, always
    return tuple(
        Interval(min(low, w), max(high, w)) for (low, high), w in zip(found, weights, strict=True)
    )


def _scale(coefficients: FloatArray, names: Sequence[str]) -> float:
    scale = float(np.abs(coefficients).sum())
    if scale < 1e-12:
        raise TrainingError(
            f"the labels have nothing to do with the scores of {', '.join(names)}: every weight "
            "would be 0"
        )
    return scale


def _normalised(coefficients: FloatArray) -> FloatArray:
    """Return coefficients whose absolute values sum to 1; those that are all 0 stay."""
    total = np.abs(coefficients).sum(axis=-1, keepdims=True)
    return np.asarray(coefficients / np.where(total > 0, total, 1.0))


def _one_sided(p: FloatArray) -> Literal["A", "B"] | None:
    sides = set(np.sign(p - 0.5).tolist()) - {0.0}
    if len(sides) == 2:
        return None
    return "A" if sides == {1.0} else "B"
