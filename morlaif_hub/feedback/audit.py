"""A look at feedback: which verdicts to read, and how far principles agree with each other."""

from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.errors import OptionError
from morlaif_hub.feedback.dataset import FeedbackDataset, Labelled
from morlaif_hub.messages import content_hash
from morlaif_hub.statistics import Estimate, estimate_mean, log_odds

Show = Literal["random", "flipped", "uncertain"]
"""Which verdicts: any, those whose preferred response changed with the order, the least certain."""
SHOWS: tuple[Show, ...] = get_args(Show)


class Sides(NamedTuple):
    """Which response of each pair a set prefers, small enough to keep of many sets at once.

    Attributes:
        pairs: Ids of the pairs, shape (n,).
        prompts: Ids of their prompts, shape (n,).
        signs: 1 where the response is preferred that comes first in the alphabet, -1 where the
            other is, 0 for a tie; so that sets with A and B the other way round can be compared.
    """

    pairs: NDArray[np.bytes_]
    prompts: NDArray[np.bytes_]
    signs: NDArray[np.int8]


class Selection(NamedTuple):
    """Verdicts that were picked to be read.

    Attributes:
        found: How many verdicts of the kind there are.
        shown: Some of them, the most telling first.
    """

    found: int
    shown: list[Labelled]


def select_verdicts(
    labelled: Sequence[Labelled], show: Show, *, n: int, seed: int = 0
) -> Selection:
    """Return some verdicts to read.

    Args:
        labelled: All verdicts of a set.
        show: `random` draws by the pair's id and the seed, so that sets of several principles
            show the same pairs. `flipped` has those whose preferred response changed with the
            order, the largest change of the log-odds first. `uncertain` has the verdicts nearest
            to one half, ties first; of equal ones, the seed decides.
        n: How many at most.
        seed: Another seed draws others.

    Raises:
        OptionError: If `show` is none of these or `n` is below 1.
    """
    if show not in SHOWS:
        raise OptionError(f"show must be one of {', '.join(SHOWS)}, got {show!r}")
    if n < 1:
        raise OptionError(f"n must be at least 1, got {n}")
    wanted = [item for item in labelled if show != "flipped" or item.verdict.flipped]

    def rank(item: Labelled) -> tuple[float, str]:
        telling = {"random": 0.0, "flipped": -_change(item), "uncertain": _certainty(item)}
        return telling[show], content_hash([seed, item.comparison.id])

    return Selection(len(wanted), nsmallest(n, wanted, key=rank))


def preferred_sides(dataset: FeedbackDataset) -> Sides:
    """Return which response of each pair a set prefers."""
    rows = [item for items in dataset.splits for item in items]
    towards_first = [
        np.sign(verdict.probability_a - 0.5) * (1 if pair.response_a < pair.response_b else -1)
        for pair, verdict in rows
    ]
    return Sides(
        np.array([pair.id for pair, _ in rows], dtype=bytes),
        np.array([pair.prompt_id for pair, _ in rows], dtype=bytes),
        np.array(towards_first, dtype=np.int8),
    )


def agreement(
    sides: Mapping[str, Sides], *, seed: int = 0
) -> dict[tuple[str, str], Estimate | None]:
    """Return how often two principles prefer the same response, for every two of them.

    Args:
        sides: Of each principle's set, by name.
        seed: Of the intervals, which resample prompts.

    Returns:
        By both names, each pair of principles once, in the order given. Of the pairs that both
        sets have, the share on which they agree, in [0, 1]; where one has a tie, a pair counts one
        half. None where the sets have no pair in common.
    """
    names = list(sides)
    return {
        (one, other): _agreement(sides[one], sides[other], seed=seed)
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    }


def _agreement(one: Sides, other: Sides, *, seed: int) -> Estimate | None:
    _, in_one, in_other = np.intersect1d(one.pairs, other.pairs, return_indices=True)
    if not in_one.size:
        return None
    same = 0.5 + 0.5 * one.signs[in_one].astype(float) * other.signs[in_other]
    return estimate_mean(same, one.prompts[in_one], seed=seed)


def _change(item: Labelled) -> float:
    first, second = item.verdict.probability_a_first, item.verdict.probability_a_second
    return float(abs(log_odds(first) - log_odds(second)))


def _certainty(item: Labelled) -> float:
    return abs(item.verdict.probability_a - 0.5)
