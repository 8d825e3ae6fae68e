"""Which scalarizer tells best which of two responses is preferred."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from morlaif_hub.errors import MorlaifHubError, OptionError
from morlaif_hub.scalarizers import SCALARIZERS
from morlaif_hub.statistics import Estimate, FloatArray, estimate_mean, pairwise_accuracy
from morlaif_hub.statistics.arrays import finite, in_unit_range

_DRAWS = 50_000_000
"""Prompts drawn for one interval, at most: where there are very many, fewer resamples will do."""
_RESAMPLES = (200, 2000)


class ScalarizerAccuracy(NamedTuple):
    """How well a scalarizer tells labels.

    Attributes:
        name: In `SCALARIZERS`.
        accuracy: Share of pairs, ties apart, in which the preferred response has the higher
            reward; None where it cannot be measured.
        above_linear: Its accuracy minus that of `linear`, pair by pair; None as well.
        problem: Why it cannot be measured; None where it can.
    """

    name: str
    accuracy: Estimate | None
    above_linear: Estimate | None
    problem: str | None = None


def compare_scalarizers(
    score_a: ArrayLike,
    score_b: ArrayLike,
    probabilities: ArrayLike,
    prompts: Sequence[str],
    *,
    weights: ArrayLike,
    seed: int = 0,
) -> list[ScalarizerAccuracy]:
    """Return how well every registered scalarizer tells labels, plugins included.

    One that does not take such weights, or cannot be loaded, is listed with the reason.

    Args:
        score_a: Calibrated scores of the responses A, shape (pairs, objectives).
        score_b: Those of the responses B.
        probabilities: Probability that A is better, one half for a tie; shape (pairs,).
        prompts: An id of each pair's prompt, which intervals resample.
        weights: Shape (objectives,), or (pairs, objectives) for weights of each pair's own, such
            as the `held_out_weights` of a fit, which make it a fair measurement.
        seed: Of the resampling.

    Raises:
        OptionError: If shapes do not go together, or all labels are ties.

    Example:
        >>> a, b = [[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.5], [1.0, 0.0]]
        >>> found = compare_scalarizers(a, b, [1, 1], ["x", "y"], weights=[0.5, 0.5])
        >>> [(f.name, f.accuracy.value) for f in found][:2]
        [('linear', 1.0), ('max_min', 0.5)]
    """
    a, b = finite(score_a, "score_a"), finite(score_b, "score_b")
    p, w = in_unit_range(probabilities), finite(weights, "weights")
    if a.ndim != 2 or a.shape != b.shape or p.shape != a.shape[:1] or len(prompts) != len(a):
        raise OptionError(
            "scores must be two times (pairs, objectives), probabilities and prompts (pairs,); "
            f"got {a.shape}, {b.shape}, {p.shape}, ({len(prompts)},)"
        )
    if w.shape not in (a.shape, a.shape[1:]):
        raise OptionError(f"weights must be {a.shape[1:]} or {a.shape}, got {w.shape}")
    decided = p != 0.5
    if not decided.any():
        raise OptionError("all labels are ties, and nobody can be right about them")
    of_each = np.broadcast_to(w, a.shape)[decided]
    scores, labels = (a[decided], b[decided]), p[decided]
    groups = np.asarray(prompts)[decided]
    linear: FloatArray | None = None
    found = []
    for name in SCALARIZERS.names():
        try:
            rewards = _reward_differences(name, scores, of_each)
        except MorlaifHubError as error:
            found.append(ScalarizerAccuracy(name, None, None, str(error)))
            continue
        right = pairwise_accuracy(rewards, labels)
        linear = right if linear is None else linear  # the first, which takes any weights
        above = over_prompts(right - linear, groups, seed=seed)
        found.append(ScalarizerAccuracy(name, over_prompts(right, groups, seed=seed), above))
    return found


def over_prompts(values: FloatArray, prompts: ArrayLike, *, seed: int) -> Estimate:
    """Return a mean over pairs with an interval over prompts, in bounded time."""
    fewest, most = _RESAMPLES
    resamples = max(fewest, min(most, _DRAWS // len(np.unique(np.asarray(prompts)))))
    return estimate_mean(values, prompts, seed=seed, resamples=resamples)


def _reward_differences(
    name: str, scores: tuple[FloatArray, FloatArray], weights: FloatArray
) -> FloatArray:
    """Return the reward of A minus that of B, each pair with the weights of its own."""
    scalarize = SCALARIZERS.get(name)
    different, which = np.unique(weights, axis=0, return_inverse=True)
    differences = np.empty(len(weights))
    for i, row in enumerate(different):
        mine = which.reshape(-1) == i
        a, b = (scalarize(torch.tensor(s[mine]), torch.tensor(row)) for s in scores)
        differences[mine] = (a - b).numpy()
    return finite(differences, f"the rewards of {name}")
