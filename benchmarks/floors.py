"""What scoring with a bank has to cost at least, and the counts of tokens that this rests on.

The unit is a base forward: one plain forward of the base over the same texts without padding. What
`Work.floor` returns holds for whoever multiplies the same matrices with the same kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import OptionError

Texts = Sequence[Sequence[int]]

KEYS_AND_VALUES = ("k_proj", "v_proj")


@dataclass(frozen=True)
class Work:
    """What a bank has to compute for a token.

    Attributes:
        first: The index of the first adapted layer; `layers` if only heads differ.
        layers: Of the base.
        adapters: How many there are.
        last_layer_share: Of a layer's multiply-adds, those that the last layer needs for all
            tokens, between 0 and 1.
    """

    first: int
    layers: int
    adapters: int
    last_layer_share: float

    def floor(self, unique_share: float = 1.0) -> float:
        """Return the base forwards that all scores of a list take at least.

        Every layer below the first adapted one is computed once, every other one once for each
        adapter. Of the last layer only the keys and values are needed for all tokens.

        Args:
            unique_share: Tokens that are left when equal beginnings are counted once, divided by
                all.

        Example:
            >>> round(Work(first=22, layers=30, adapters=12, last_layer_share=0.16).floor(), 2)
            3.6
        """
        if self.first >= self.layers:  # the last layer, too, is the same for all
            return unique_share * (self.layers - 1 + self.last_layer_share) / self.layers
        adapted = self.adapters * (self.layers - self.first - 1 + self.last_layer_share)
        return unique_share * (self.first + adapted) / self.layers

    @property
    def trunk_factor(self) -> float:
        """How many times less the floor is than a full forward for each adapter."""
        return self.adapters / self.floor()


def last_layer_share(model: Any) -> float:
    """Return which share of the last layer's multiply-adds makes its keys and values.

    Args:
        model: A transformers model without adapters, whose layers have a `k_proj` and a `v_proj`.

    Raises:
        OptionError: If they have not.
    """
    layers = layer_list(model)
    matrices = {
        name: parameter.numel()
        for name, parameter in (layers[-1].named_parameters() if layers else ())
        if parameter.dim() == 2
    }
    needed = [n for name, n in matrices.items() if name.split(".")[-2] in KEYS_AND_VALUES]
    if len(needed) != len(KEYS_AND_VALUES):
        raise OptionError(
            f"the base's last layer has no {' and '.join(KEYS_AND_VALUES)}, so what it needs at "
            "least is not known; use a model that has them, such as a Llama"
        )
    return sum(needed) / sum(matrices.values())


def tokens(texts: Texts) -> int:
    """Return the number of all tokens."""
    return sum(len(text) for text in texts)


def unique_tokens(texts: Texts) -> int:
    """Return the number of tokens when a beginning that texts share is counted once.

    That is the number of nodes of the texts' prefix tree.

    Example:
        >>> unique_tokens([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5]])
        5
    """
    ordered = sorted({tuple(text) for text in texts})
    return tokens(ordered) - sum(_shared(left, right) for left, right in pairwise(ordered))


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    same = takewhile(lambda ids: ids[0] == ids[1], zip(left, right, strict=False))
    return sum(1 for _ in same)


def by_length(texts: Texts) -> list[int]:
    """Return the indices of the texts, the shortest first."""
    return sorted(range(len(texts)), key=lambda i: len(texts[i]))


def padded_to_list(texts: Texts) -> int:
    """Return the number of tokens when all texts are padded to the longest of all."""
    return len(texts) * max(len(text) for text in texts)


def padded_to_batch(texts: Texts, *, batch: int) -> int:
    """Return the number of tokens when texts of similar length are padded to their batch's longest.

    Args:
        texts: Token ids.
        batch: Texts of a mini-batch.
    """
    ordered = [texts[i] for i in by_length(texts)]
    return sum(padded_to_list(ordered[i : i + batch]) for i in range(0, len(ordered), batch))


@dataclass(frozen=True)
class Counts:
    """How many tokens a list has, in several ways to count them.

    Attributes:
        texts: In the list.
        tokens: Of all texts.
        padded_to_list: With all texts as long as the longest.
        padded_to_batch: With texts of similar length in mini-batches, each padded to its longest.
        unique: When a beginning that texts share is counted once.
    """

    texts: int
    tokens: int
    padded_to_list: int
    padded_to_batch: int
    unique: int

    @classmethod
    def of(cls, texts: Texts, *, batch: int) -> "Counts":
        """Return the counts of a list of token ids, for mini-batches of so many texts."""
        padded = padded_to_batch(texts, batch=batch)
        return cls(len(texts), tokens(texts), padded_to_list(texts), padded, unique_tokens(texts))

    @property
    def waste(self) -> float:
        """How many times more tokens padding to the longest of the list makes."""
        return self.padded_to_list / self.tokens

    @property
    def unique_share(self) -> float:
        """Tokens that are left when equal beginnings are counted once, divided by all."""
        return self.unique / self.tokens
