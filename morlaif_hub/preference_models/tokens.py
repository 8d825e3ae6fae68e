"""Labelled pairs as token ids: what every trainer of preference models takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.bank.layout import Ids
from morlaif_hub.models.formats import Encoder
from morlaif_hub.preference_models.preferences import LabelledPairs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TokenPairs:
    """Pairs as a preference model reads them.

    Attributes:
        first: Prompt and response A of each pair.
        second: Prompt and response B.
        probabilities: Probability that A is better, one half for a tie, shape (pairs,).
    """

    first: list[Ids]
    second: list[Ids]
    probabilities: Array

    def __len__(self) -> int:
        return len(self.first)


def token_pairs(pairs: LabelledPairs, encoder: Encoder) -> TokenPairs:
    """Return labelled pairs as an encoder reads them."""
    both = [encoder.both(comparison) for comparison in pairs.comparisons]
    return TokenPairs([a for a, _ in both], [b for _, b in both], pairs.probabilities)
