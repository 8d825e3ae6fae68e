"""Scoring a row of packed texts with many adapters in one pass, by the model's own modules.

No architecture has code of its own here. The model runs itself up to the first layer that an
adapter changes, once for all; from there each adapter goes on with the states that it needs. The
last layer is computed in full only where a text is read. What follows the layers, norm and head, is
again run by the model, on the states that were read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morlaif_hub.bank.attention import (
    ASKING,
    PACKED,
    Asking,
    Call,
    NotPackableError,
    RowAttention,
    Rule,
    SegmentAttention,
    States,
    attended_by,
    attention_configs,
)
from morlaif_hub.bank.flex import FlexAttention
from morlaif_hub.bank.in_place import InPlace, entries, replaced
from morlaif_hub.bank.kernels import Kernel
from morlaif_hub.bank.layout import SHORTEST_PREFIX, Ids, Layout, lay_out, rows
from morlaif_hub.bank.trunk import Features, head_inputs, layer_list

Slot = str | None
"""An adapter's name in the model; None is the model without adapters."""


class _ReachedError(Exception):
    """Ends a pass of the model at the place up to which it was wanted."""


class Given(NamedTuple):
    """What a model tells a layer beside its states: positions, tables, caches."""

    values: tuple[Any, ...]
    named: dict[str, Any]


class Trunk(NamedTuple):
    """A pass of the model up to where adapters begin.

    Attributes:
        states: That enter each layer with which an adapter begins, by the layer's index.
        given: What every layer is told.
    """

    states: dict[int, Tensor]
    given: list[Given]


class PackedScorer:
    """Scores rows of packed texts.

    Args:
        model: A PEFT model of a sequence classifier with one output, or a classifier.
        slots: Names of its adapters; none if the classifier itself is the preference model.
        kernel: What multiplies matrices.
        share_prefixes: Whether texts share what they begin with in common.

    Raises:
        NotPackableError: If the model's attention cannot be told what a packed row is.
    """

    def __init__(
        self, model: Any, slots: Sequence[str], *, kernel: Kernel, share_prefixes: bool = True
    ) -> None:
        self.classifier = model.get_base_model() if slots else model
        layers = layer_list(self.classifier)
        if layers is None:
            raise NotPackableError(f"{type(self.classifier).__name__} has no one list of layers")
        self.slots: tuple[Slot, ...] = tuple(slots) or (None,)
        self._layers = list(layers)
        depth = len(self._layers)
        self._entries = entries(self.classifier, self._layers, slots) if slots else [depth]
        self._configs = attention_configs(self.classifier)
        self._padding_position = _padding_position(self.classifier)
        self._in_place = InPlace(self.classifier, kernel.product)
        asked = self._ask()
        self._rules = asked.rules
        self._tuples = asked.tuples
        self.causal = all(rule.causal for rule in self._rules)
        self.sharing = self.causal and share_prefixes and self._padding_position is None

    def batch(self, texts: list[Ids], tokens: int) -> list[Ids]:
        """Return the first texts of a list in lexicographic order that are one row.

        Args:
            texts: To be scored.
            tokens: That a row of several texts may have.
        """
        return next(rows(texts, row_tokens=tokens, sharing=self.sharing))

    @torch.inference_mode()
    def score(self, texts: Sequence[Ids]) -> Tensor:
        """Return every adapter's raw score of every text.

        Args:
            texts: In lexicographic order; they are one row.

        Returns:
            float32 on the CPU, shape (texts, adapters).
        """
        layout = self._laid_out(texts)
        with self._in_place.applied() as choice:
            row = _Row(self, layout)
            with attended_by(row, self._configs, PACKED):
                finals: dict[Slot, Tensor] = {}
                for stage in self._stages():
                    choice.slot = stage.begins
                    trunk = row.trunk(stage.depths)
                    shared: dict[int, dict[Any, Any]] = {d: {} for d in stage.depths}
                    for slot, entry in stage.slots:
                        choice.slot = slot
                        finals[slot] = row.finish(trunk, entry, shared[entry])
                columns = []
                for slot, entry in zip(self.slots, self._entries, strict=True):
                    choice.slot = slot
                    bare = None if entry == len(self._layers) else slot
                    columns.append(row.tail(finals[bare]))
        return torch.stack(columns, dim=1).float().cpu()

    @torch.no_grad()
    def features(self, texts: Sequence[Ids], depth: int) -> list[Features]:
        """Return what the model without adapters makes of texts.

        Args:
            texts: In lexicographic order; they are one row.
            depth: The layer whose entering states are wanted.
        """
        layout = self._laid_out(texts)
        with self._in_place.applied():
            row = _Row(self, layout)
            with attended_by(row, self._configs, PACKED):
                trunk = row.trunk({depth})
                with head_inputs(self.classifier) as seen:
                    row.tail(row.finish(trunk, depth, {}))
        states = trunk.states[depth][0].cpu()
        return [
            Features(torch.cat([states[start:end] for start, end in read.path]), at_head)
            for read, at_head in zip(layout.reads, seen[0].flatten(1).float().cpu(), strict=True)
        ]

    def _stages(self) -> "Iterator[_Stage]":
        """Yield what begins with one trunk: first the bare base's, then those with their own."""
        last = len(self._layers) - 1
        shared: dict[Slot, int] = {}
        for slot, entry in zip(self.slots, self._entries, strict=True):
            if entry > last:
                shared[None] = last  # a head alone: the states are those of the base
            elif entry >= 0:
                shared[slot] = entry
        if shared:
            yield _Stage(None, list(shared.items()))
        for slot, entry in zip(self.slots, self._entries, strict=True):
            if entry < 0:
                yield _Stage(slot, [(slot, 0)])

    def _laid_out(self, texts: Sequence[Ids]) -> Layout:
        return lay_out(
            texts,
            shortest_prefix=SHORTEST_PREFIX if self.sharing else None,
            read_first=not self.causal,
        )

    def _ask(self) -> Asking:
        asked = Asking(len(self._layers))
        ids = torch.tensor([[0, 1]], device=self.classifier.device)
        name = type(self.classifier).__name__

        def look(index: int, own: Callable[..., Any], states: Tensor, told: Given) -> Any:
            asked.layer = index
            result = own(states, *told.values, **told.named)
            asked.tuples[index] = isinstance(result, tuple)
            return result

        try:
            with attended_by(asked, self._configs, ASKING), self._in_place.applied():
                self.walk(ids, ids, look)
        except Exception as error:  # attention of its own fails on what is no mask in any way
            raise NotPackableError(
                f"{name} has attention of its own kind, which cannot be asked: {error}"
            ) from error
        asked.check(name)
        return asked

    def walk(self, ids: Tensor, positions: Tensor, visit: "Visit") -> Any:
        """Run the model with every layer in the hands of `visit`; None if that ended the pass.

        Args:
            ids: Shape (batch, tokens).
            positions: Of the tokens in their texts, the same shape.
            visit: Told a layer's index, its own forward, states and what else it is told; returns
                what the layer is to return.
        """

        def forward(index: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def run(*values: Any, **named: Any) -> Any:
                if not values:
                    values = (named.pop("hidden_states"),)
                return visit(index, own, values[0], Given(values[1:], named))

            return run

        forwards = {layer: forward(i, layer.forward) for i, layer in enumerate(self._layers)}
        try:
            with replaced(forwards):
                return self.classifier(input_ids=ids, position_ids=positions, use_cache=False)
        except _ReachedError:
            return None

    def numbered(self, ids: Tensor, layout: Layout) -> Tensor:
        """Return each token's number in its text, as the model's embeddings count, (1, tokens).

        Most count from 0. A table of positions with a place for padding counts from after that
        place, and counts no padding.
        """
        pad = self._padding_position
        if pad is None:
            return torch.tensor([layout.positions], device=ids.device)
        counted = (ids[0] != pad).long()
        numbers = [counted[node.start : node.end].cumsum(0) for node in layout.nodes]
        return (torch.cat(numbers) * counted + pad)[None]

    def layer(self, index: int, states: Tensor, given: Given) -> Tensor:
        """Return what a layer makes of states, shape (batch, tokens, width)."""
        result = self._layers[index](states, *given.values, **given.named)
        states = result[0] if self._tuples[index] else result
        return states

    def as_returned(self, index: int, states: Tensor) -> Any:
        """Return states in the form in which a layer returns them."""
        return (states,) if self._tuples[index] else states

    def rule(self, index: int) -> Rule:
        """Return who sees whom in a layer."""
        return self._rules[index]


Visit = Callable[[int, Callable[..., Any], Tensor, Given], Any]


class _Stage(NamedTuple):
    """Adapters that go on from one trunk: the slot whose trunk it is, and each one's entry."""

    begins: Slot
    slots: list[tuple[Slot, int]]

    @property
    def depths(self) -> set[int]:
        """The layers with which an adapter begins."""
        return {entry for _, entry in self.slots}


class _Row:
    """The passes over one row.

    Args:
        scorer: Whose model it is.
        layout: The row.
    """

    def __init__(self, scorer: PackedScorer, layout: Layout) -> None:
        model = scorer.classifier
        self._scorer = scorer
        self._ids = torch.tensor([layout.ids], device=model.device)
        self._positions = scorer.numbered(self._ids, layout)
        self._places = torch.tensor([read.place for read in layout.reads], device=model.device)
        self._attention: RowAttention = SegmentAttention(layout, model.dtype, model.device)
        if model.device.type == "cuda":
            self._attention = FlexAttention(layout, model.dtype, model.device)
        self._last = len(scorer._layers) - 1
        self._layer = 0
        self._keep = False
        self._kept: tuple[Tensor, Tensor] | None = None
        self._read: Given | None = None

    def trunk(self, depths: set[int]) -> Trunk:
        """Run the model up to the deepest of some layers; keep what enters each of them."""
        states: dict[int, Tensor] = {}
        given: list[Given] = []

        def visit(index: int, own: Callable[..., Any], entering: Tensor, told: Given) -> Any:
            given.append(told)
            if index in depths:
                states[index] = entering
            if index == self._last:
                raise _ReachedError
            if index >= max(depths):
                return self._scorer.as_returned(index, entering)
            self._layer = index
            return own(entering, *told.values, **told.named)

        self._scorer.walk(self._ids, self._positions, visit)
        return Trunk(states, given)

    def finish(self, trunk: Trunk, entry: int, shared: dict[Any, Any]) -> Tensor:
        """Return the states that are read, as the chosen adapter's layers make them.

        Args:
            trunk: What it goes on from.
            entry: The first layer that the adapter changes.
            shared: What adapters with this entry have in common in it.

        Returns:
            Shape (1, texts, width).
        """
        scorer, choice = self._scorer, self._scorer._in_place.choice
        states = trunk.states[entry]
        for index in range(entry, self._last):
            choice.shared = shared if index == entry else None
            self._layer = index
            states = scorer.layer(index, states, trunk.given[index])
        choice.shared = shared if entry == self._last else None
        self._layer = self._last
        with self._keeping():
            scorer.layer(self._last, states, trunk.given[self._last])
        if self._kept is None:
            raise NotPackableError("the last layer has no keys and values to keep")
        choice.shared = None
        read = scorer.layer(self._last, states[:, self._places], self._reading())
        self._kept = None
        return read

    def tail(self, states: Tensor) -> Tensor:
        """Return what the model's norm and head make of read states, shape (texts,)."""

        def visit(index: int, _own: Callable[..., Any], entering: Tensor, _told: Given) -> Any:
            here = states.transpose(0, 1) if index == self._last else entering
            return self._scorer.as_returned(index, here)

        ids, positions = self._ids[0, self._places, None], self._positions[0, self._places, None]
        logits: Tensor = self._scorer.walk(ids, positions, visit).logits
        return logits[:, 0]

    def attend(
        self, module: nn.Module, states: States, scaling: float | None, more: dict[str, Any]
    ) -> Tensor:
        """Return attention of the row, or of the texts' reads; or keep the last keys and values."""
        query, key, value = states
        rule = self._scorer.rule(self._layer)
        if self._keep:
            self._kept = key, value
            raise _ReachedError
        call = Call(module, scaling, more)
        if self._kept is not None:
            return self._attention.of_reads(rule, query, self._kept, call)
        return self._attention.of_row(rule, states, call)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Within this context a layer is run up to its keys and values, which are kept."""
        self._keep = True
        try:
            yield
        except _ReachedError:
            return
        finally:
            self._keep = False

    def _reading(self) -> Given:
        """Return what the model tells its last layer about the tokens that are read."""
        if self._read is None:

            def visit(index: int, _own: Callable[..., Any], entering: Tensor, told: Given) -> Any:
                if index == self._last:
                    self._read = told
                    raise _ReachedError
                return self._scorer.as_returned(index, entering)

            ids, positions = self._ids[:, self._places], self._positions[:, self._places]
            kept, self._kept = self._kept, None
            self._scorer.walk(ids, positions, visit)
            self._kept = kept
        if self._read is None:
            raise NotPackableError("the last layer was not reached")
        return self._read


def _padding_position(model: nn.Module) -> int | None:
    """Return the place for padding in a model's table of positions, if it has such a place."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None
