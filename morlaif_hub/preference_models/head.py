"""The start of a preference model: a score head fitted on the frozen base.

From little data a random head learns the wrong thing. A logistic fit on the frozen base's
features points it the right way before any adapter is trained.

Source:
    arXiv:2202.10054 (linear probing, then fine-tuning).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.statistics import fit_logistic, pairwise_accuracy

Array = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in np.arange(0.0, 4.6, 0.5))
FOLDS = 5


def fit_head(
    differences: Array, probabilities: Array, weights: Array, groups: Sequence[str], *, seed: int
) -> Array:
    """Return a head that scores the better response higher.

    The penalty is chosen by cross-validation over whole groups; of equally good ones, the larger.

    Args:
        differences: Features of response A minus those of B, shape (pairs, width).
        probabilities: Probability that A is better, shape (pairs,).
        weights: Of the pairs, shape (pairs,).
        groups: The prompt of each pair; pairs of one prompt stay on one side of a split.
        seed: Of the split.

    Returns:
        Shape (width,), in units of score per unit of feature.
    """
    scale = float(differences.std()) or 1.0
    scaled = differences / scale
    folds = _folds(groups, seed)
    penalty = PENALTIES[-1]
    if len(np.unique(folds)) > 1:
        accuracies = [_held_out(scaled, probabilities, weights, folds, l2) for l2 in PENALTIES]
        best = max(accuracies)
        penalty = max(l2 for l2, value in zip(PENALTIES, accuracies, strict=True) if value == best)
    return fit_logistic(scaled, probabilities, weights=weights, l2=penalty) / scale


def _folds(groups: Sequence[str], seed: int) -> NDArray[np.intp]:
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(order[i]) % FOLDS for i, name in enumerate(names)}
    return np.array([fold[name] for name in groups])


def _held_out(
    scaled: Array, probabilities: Array, weights: Array, folds: NDArray[np.intp], l2: float
) -> float:
    agreement = np.empty(len(probabilities))
    for fold in np.unique(folds):
        out = folds == fold
        head = fit_logistic(scaled[~out], probabilities[~out], weights=weights[~out], l2=l2)
        agreement[out] = pairwise_accuracy(scaled[out] @ head, probabilities[out])
    return float(np.average(agreement, weights=weights))
