"""What the scores of many pairs come to, for each objective."""

from dataclasses import dataclass

import numpy as np
import pyarrow
from numpy.typing import NDArray

from morlaif_hub.scoring.pairs import ScoredPairs
from morlaif_hub.statistics import Interval, bootstrap_interval, pairwise_accuracy

_DRAWS = 50_000_000
"""Prompts drawn for one interval, at most: half a second. Where there are very many prompts, the
interval is narrow and fewer resamples find its ends."""
_RESAMPLES = (200, 2000)


@dataclass(frozen=True)
class ObjectiveSummary:
    """What one objective's scores come to.

    Attributes:
        mean_a: Mean score of the responses A.
        mean_b: Mean score of the responses B.
        n: In how many pairs it is known which response people chose.
        agreement: In how large a share of those the higher score is that of the chosen response; a
            tie counts one half. None where n is 0.
        interval: Its 95 % interval, over prompts.
    """

    mean_a: float
    mean_b: float
    n: int
    agreement: float | None
    interval: Interval | None


def summarize(scored: ScoredPairs) -> dict[str, ObjectiveSummary]:
    """Return a summary of every objective, by name.

    The files are read one after another; of a pair, only numbers are kept.

    Raises:
        WorkspaceError: If one of them is not there any more.
    """
    scores, chosen, prompts = [], [], []
    names = [f"{name}_{side}" for name in scored.objectives for side in "ab"]
    for table in scored.tables():
        scores.append(np.stack([table[name].to_numpy() for name in names]))
        chosen.append(_chose_a(table))
        prompts.append(np.array([int(text[:15], 16) for text in table["prompt_id"].to_pylist()]))
    sides = np.concatenate(scores, axis=1).reshape(len(scored.objectives), 2, -1)
    people, groups = np.concatenate(chosen), np.concatenate(prompts)
    return {
        name: _summary(a, b, people, groups)
        for name, (a, b) in zip(scored.objectives, sides, strict=True)
    }


def _chose_a(table: pyarrow.Table) -> NDArray[np.float32]:
    """Return 1 where people chose A, 0 for B and NaN where it is not known."""
    sides = {"a": 1.0, "b": 0.0, None: np.nan}
    return np.array([sides[side] for side in table["human_choice"].to_pylist()], np.float32)


def _summary(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    chosen: NDArray[np.float32],
    prompts: NDArray[np.int64],
) -> ObjectiveSummary:
    means = float(a.mean(dtype=np.float64)), float(b.mean(dtype=np.float64))
    known = ~np.isnan(chosen)
    n = int(known.sum())
    if not n:
        return ObjectiveSummary(*means, 0, None, None)
    right = pairwise_accuracy(a[known] - b[known], chosen[known])
    groups = prompts[known]
    fewest, most = _RESAMPLES
    resamples = max(fewest, min(most, _DRAWS // len(np.unique(groups))))
    interval = bootstrap_interval(right, groups, resamples=resamples)
    return ObjectiveSummary(*means, n, float(right.mean()), interval)
