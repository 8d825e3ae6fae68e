"""Attention of a packed row in pieces: neighbouring queries and the keys that they see.

Gradients of the pieces go to one place. PyTorch makes the gradient of a slice as large as what it
is a slice of, so that the cost of a row would grow with the square of its texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morlaif_hub.bank.layout import Slices

States = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each (batch, heads, tokens, width)."""


@dataclass(frozen=True)
class Mask:
    """What some queries see of some keys.

    Attributes:
        first: The first key that is taken.
        keys: How many are.
        causal: Whether each query sees the keys up to its own, and both are as many.
        seen: Which are seen, shape (queries, keys); None for all, or those that `causal` says.
    """

    first: int
    keys: int
    causal: bool = False
    seen: Tensor | None = None

    def additive(self, like: Tensor) -> Tensor | None:
        """Return it as numbers to be added to scores; None if all are seen."""
        seen = self.seen
        if self.causal:
            seen = torch.ones(self.keys, self.keys, dtype=torch.bool, device=like.device).tril()
        if seen is None:
            return None
        hidden = torch.full(seen.shape, torch.finfo(like.dtype).min, dtype=like.dtype)
        return hidden.to(like.device).masked_fill(seen, 0.0)[None, None]


class Piece(NamedTuple):
    """Neighbouring queries that are attended for together.

    Attributes:
        start: The place of the first query.
        end: The place after the last.
        keys: Those that some of them see, in the order of their text.
        mask: Which of these each sees.
    """

    start: int
    end: int
    keys: Slices
    mask: Mask


def part_of(path: Slices, first: int, last: int) -> Slices:
    """Return slices without what comes before a place in their text, and after another."""
    found, passed = [], 0
    for start, end in path:
        cut = max(start, start + first - passed), min(end, start + last - passed)
        passed += end - start
        if cut[0] < cut[1]:
            found.append(cut)
    return tuple(found)


Attention = Callable[..., Tensor]
"""Takes queries, keys, values and a mask; returns (batch, queries, heads, width)."""


def taken(states: Tensor, slices: Slices) -> Tensor:
    """Return slices of (batch, heads, tokens, width) along its tokens, joined."""
    if len(slices) == 1:
        return states[:, :, slices[0][0] : slices[0][1]]
    return torch.cat([states[:, :, start:end] for start, end in slices], dim=2)


def attended(pieces: Sequence[Piece], states: States, call: Attention) -> Tensor:
    """Return attention of pieces that cover all queries in order, (1, queries, heads, width)."""
    if torch.is_grad_enabled() and any(its.requires_grad for its in states):
        result: Tensor = _Attended.apply(*states, pieces, call)
        return result
    query, key, value = states
    found = [
        call(query[:, :, p.start : p.end], taken(key, p.keys), taken(value, p.keys), p.mask)
        for p in pieces
    ]
    return torch.cat(found, dim=1)


class _Attended(torch.autograd.Function):
    """The same with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pieces: Sequence[Piece],
        call: Attention,
    ) -> Tensor:
        given: list[Tensor] = []
        with torch.enable_grad():
            for piece in pieces:
                its = (
                    query[:, :, piece.start : piece.end],
                    *(taken(states, piece.keys) for states in (key, value)),
                )
                given += [part.detach().requires_grad_() for part in its]
            found = [call(*given[3 * i : 3 * i + 3], piece.mask) for i, piece in enumerate(pieces)]
        ctx.graph = found, given, pieces
        ctx.like = query, key, value
        return torch.cat([its.detach() for its in found], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found, given, pieces = ctx.graph
        of_found = gradients[0].split([its.shape[1] for its in found], dim=1)
        of_given = torch.autograd.grad(found, given, of_found)
        ctx.graph = None
        queries, keys, values = (torch.zeros_like(states) for states in ctx.like)
        for i, piece in enumerate(pieces):
            queries[:, :, piece.start : piece.end] = of_given[3 * i]
            for whole, part in ((keys, of_given[3 * i + 1]), (values, of_given[3 * i + 2])):
                begin = 0
                for start, end in piece.keys:
                    whole[:, :, start:end] += part[:, :, begin : begin + end - start]
                    begin += end - start
        return queries, keys, values, None, None
