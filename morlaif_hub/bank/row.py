"""The passes of a model over one row of packed texts."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morlaif_hub.bank.attention import (
    Call,
    NotPackableError,
    RowAttention,
    Rule,
    SegmentAttention,
)
from morlaif_hub.bank.flex import FlexAttention
from morlaif_hub.bank.in_place import Choice, Shared
from morlaif_hub.bank.layout import Layout
from morlaif_hub.bank.pieces import States
from morlaif_hub.bank.pooling import RowPools, base_outputs
from morlaif_hub.bank.walk import Given, ReachedError, Visited, Walker


class Trunk(NamedTuple):
    """A pass of the model up to where adapters begin.

    Attributes:
        states: That enter each layer with which an adapter begins, by the layer's index.
        given: What every layer is told.
    """

    states: dict[int, Tensor]
    given: list[Given]


class Row:
    """The passes over one row.

    Args:
        walker: The model.
        rules: Who sees whom, in each layer.
        layout: The row.
        positions: Of its tokens, as the model's embeddings count, shape (1, tokens).
        choice: Which adapter the model's modules apply.

    Attributes:
        layout: The row.
    """

    def __init__(
        self,
        walker: Walker,
        rules: Sequence[Rule],
        *,
        layout: Layout,
        positions: Tensor,
        choice: Choice,
    ) -> None:
        model = walker.classifier
        self.layout = layout
        self._walker, self._rules, self._choice = walker, rules, choice
        self._ids = torch.tensor([layout.ids], device=model.device)
        self._positions = positions
        self._places = torch.tensor([read.place for read in layout.reads], device=model.device)
        kind = FlexAttention if model.device.type == "cuda" else SegmentAttention
        self._attention: RowAttention = kind(layout, model.device)
        self._layer = 0
        self._keep = False
        self._kept: tuple[Tensor, Tensor] | None = None
        self._told_to_last: Given | None = None

    def trunk(self, depths: Collection[int], pools: RowPools | None = None) -> Trunk:
        """Run the model as deep as is wanted; keep what enters some layers, pool that of others.

        Args:
            depths: The layers, by index, from which somebody goes on.
            pools: Sees the states of its own layers; None for none.
        """
        states: dict[int, Tensor] = {}
        given: list[Given] = []
        last = self._walker.last
        pooled = pools.layers if pools else frozenset()
        kept = {*depths, last} if last + 1 in pooled else set(depths)
        deepest = max(kept | (pooled - {last + 1}))
        end = last if kept else deepest  # who goes on needs to know what later layers are told

        def visit(at: Visited) -> Any:
            given.append(at.given)
            if at.index in kept:
                states[at.index] = at.states
            if pools and at.index in pooled:
                pools.see(at.index, at.states)
            if at.index == end:
                raise ReachedError
            if at.index >= deepest:
                return self._walker.as_returned(at.index, at.states)
            self._layer = at.index
            return at.run()

        self._walker.walk(self._ids, self._positions, visit)
        trunk = Trunk(states, given)
        if pools and last + 1 in pooled:
            pools.see(last + 1, self._normed(trunk))
        return trunk

    def _normed(self, trunk: Trunk) -> Tensor:
        """Return what the last layer and the final norm make of the row, (1, tokens, width)."""
        walker, last = self._walker, self._walker.last
        self._layer = last
        made = walker.layer(last, trunk.states[last], trunk.given[last])

        def visit(at: Visited) -> Any:
            return walker.as_returned(at.index, made if at.index == last else at.states)

        with base_outputs(walker.classifier) as seen:
            walker.walk(self._ids, self._positions, visit)
        return seen[-1]

    def finish(self, trunk: Trunk, entry: int, shared: Shared | None = None) -> Tensor:
        """Return the states that are read, as the chosen adapter's layers make them.

        Args:
            trunk: What it goes on from.
            entry: The first layer that the adapter changes.
            shared: What adapters with this entry have in common in it; None for one alone.

        Returns:
            Shape (1, texts, width).
        """
        walker, last = self._walker, self._walker.last
        states = trunk.states[entry]
        for index in range(entry, last):
            self._choice.shared = shared if index == entry else None
            self._layer = index
            states = walker.layer(index, states, trunk.given[index])
        self._choice.shared = shared if entry == last else None
        self._layer = last
        with self._keeping():
            walker.layer(last, states, trunk.given[last])
        self._choice.shared = None
        if self._kept is None:
            raise NotPackableError("the last layer has no keys and values to keep")
        read = walker.layer(last, states[:, self._places], self._reading())
        self._kept = None
        return read

    def tail(self, states: Tensor) -> Tensor:
        """Return what the model's norm and head make of read states, shape (texts,)."""

        def visit(at: Visited) -> Any:
            here = states.transpose(0, 1) if at.index == self._walker.last else at.states
            return self._walker.as_returned(at.index, here)

        ids, positions = self._ids[0, self._places, None], self._positions[0, self._places, None]
        logits: Tensor = self._walker.walk(ids, positions, visit).logits
        return logits[:, 0]

    def attend(
        self, module: nn.Module, states: States, scaling: float | None, more: dict[str, Any]
    ) -> Tensor:
        """Return attention of the row, or of the texts' reads; or keep the last keys and values."""
        query, key, value = states
        if self._keep:
            self._kept = key, value
            raise ReachedError
        rule, call = self._rules[self._layer], Call(module, scaling, more)
        if self._kept is not None:
            return self._attention.of_reads(rule, query, self._kept, call)
        return self._attention.of_row(rule, states, call)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Within this context a layer is run up to its keys and values, which are kept."""
        self._keep = True
        try:
            yield
        except ReachedError:
            return
        finally:
            self._keep = False

    def _reading(self) -> Given:
        """Return what the model tells its last layer about the tokens that are read."""
        if self._told_to_last is None:
            told: list[Given] = []

            def visit(at: Visited) -> Any:
                told.append(at.given)
                if at.index == self._walker.last:
                    raise ReachedError
                return self._walker.as_returned(at.index, at.states)

            ids, positions = self._ids[:, self._places], self._positions[:, self._places]
            self._walker.walk(ids, positions, visit)
            self._told_to_last = told[-1]
        return self._told_to_last
