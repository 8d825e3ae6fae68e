"""Trying out whether a way to score is exact: on probe texts, against scores that are known."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.pooling import Pooled, Wanted

EXACT = 1e-4
"""How far float32 scores may be off plain PEFT's; of scores above 1, as a share of the largest."""
EXACT_SPREAD = 2e-4
"""The same as a share of how far the scores of different texts are apart: heads may be small."""
ROUGH_SPREAD = 0.1
"""The same in half precision, in which plain PEFT itself is off by some hundredths."""


class Scorer(Protocol):
    """A way to score batches of texts.

    Attributes:
        causal: Whether no token sees a later one, so that what follows the one that is read can
            be left out.
    """

    causal: bool

    def order(self, texts: Sequence[Ids]) -> list[Ids]:
        """Return texts so that neighbours are well scored together."""

    def end(self, texts: Sequence[Ids], start: int, tokens: int) -> int:
        """Return where the batch that begins at a place of ordered texts ends."""

    def score(self, texts: Sequence[Ids], starts: Sequence[int]) -> Tensor:
        """Return a batch's raw scores, float32 on the CPU, shape (texts, adapters and probes)."""

    def trials(self, texts: Sequence[Ids], starts: Sequence[int]) -> list[Tensor]:
        """Return a batch's raw scores in each of the ways that computing them may take."""

    def pooled(self, texts: Sequence[Ids], starts: Sequence[int], wanted: Wanted) -> list[Pooled]:
        """Return what the model without adapters makes of a batch, text by text."""


def furthest(
    scorer: Scorer, texts: Sequence[Ids], starts: Sequence[int], expected: Tensor
) -> Tensor:
    """Return how far each column of scores is off the expected ones at most, in any way."""
    ordered = scorer.order(texts)
    begin = dict(zip(texts, starts, strict=True))
    wanted = expected[[texts.index(text) for text in ordered]]
    off, start = torch.zeros(expected.shape[1]), 0
    while start < len(ordered):
        end = scorer.end(ordered, start, sum(map(len, ordered)) * 2)
        batch = ordered[start:end]
        for scores in scorer.trials(batch, [begin[text] for text in batch]):
            off = off.maximum((scores - wanted[start:end]).abs().amax(0).nan_to_num(torch.inf))
        start = end
    return off


def allowed(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far each adapter's scores may be off.

    An error in what a model makes of texts shows in the difference between texts. How large scores
    are says less: a head may be small, or have a large bias.
    """
    largest = expected.abs().amax(0)
    spread = expected.amax(0) - expected.amin(0)
    spread = spread.maximum(0.1 * spread.max())  # one adapter may find all probes alike
    if dtype in (torch.float32, torch.float64):
        by_spread = EXACT_SPREAD * spread + 4 * torch.finfo(torch.float32).eps * largest
        return by_spread.minimum(EXACT * largest.clamp(min=1.0))
    return ROUGH_SPREAD * spread + torch.finfo(dtype).eps * largest


TRIAL_STARTS = (3, 11, 0)
"""Of `trial_texts`: within what two of them share, after it, and the beginning."""


def trial_texts(vocabulary: int, pad: int) -> list[Ids]:
    """Return three texts: two that share a prefix, and another. None has padding."""
    ids = [(37 * i + 11) % vocabulary for i in range(60)]
    ids = [i for i in ids if i != pad]
    return [tuple(ids[:16]), (*ids[:10], *ids[20:25]), tuple(ids[30:37])]
