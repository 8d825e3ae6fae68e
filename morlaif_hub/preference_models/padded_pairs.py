"""Pairs in padded batches, as TRL's trainers read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morlaif_hub.bank.layout import Ids
from morlaif_hub.preference_models.tokens import TokenPairs


def pair_rows(pairs: TokenPairs, batch_size: int) -> Dataset:
    """Return an epoch in TRL's columns, filled up to whole steps with a pair that does not count.

    Else the pairs of a last step that is short would weigh more, and with several processes some
    would be trained on twice.

    Args:
        pairs: At least one.
        batch_size: Pairs of a step, of all processes together.
    """
    missing = -len(pairs) % batch_size
    lengths = [len(a) + len(b) for a, b in zip(pairs.first, pairs.second, strict=True)]
    places = [*range(len(pairs)), *[int(np.argmin(lengths))] * missing]
    weight = len(places) / len(pairs)
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pairs.first[i]) for i in places],
            "rejected_ids": [list(pairs.second[i]) for i in places],
            "probability": [float(pairs.probabilities[i]) for i in places],
            "weight": [weight] * len(pairs) + [0.0] * missing,
            "pair": places,
        }
    )


@dataclass(frozen=True)
class PairCollator:
    """Makes a batch of rows: all first responses, then all second ones.

    Attributes:
        pad_token_id: What is added on the right.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return ids and mask, shape (2 * pairs, tokens), and columns of shape (pairs,)."""
        texts = [row[name] for name in ("chosen_ids", "rejected_ids") for row in rows]
        columns = {
            name: torch.tensor([row[name] for row in rows])
            for name in ("probability", "weight", "pair")
        }
        return padded(texts, self.pad_token_id) | columns


def padded(texts: Sequence[Ids], pad_token_id: int) -> dict[str, Tensor]:
    """Return texts as a model takes them, padded on the right, shape (texts, tokens)."""
    rows = [torch.tensor(text) for text in texts]
    ones = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(ones, batch_first=True),
    }


def scores(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return a classifier's scores of a padded batch, float32, shape (texts,)."""
    found: Tensor = model(**inputs, use_cache=False).logits
    return found.float().squeeze(-1)
