"""Scoring a row of packed texts with many adapters in one pass, by the model's own modules.

No architecture has code of its own here. The model runs itself up to the first layer that an
adapter changes, once for all; from there each adapter goes on with the states that it needs. The
last layer is computed in full only where a text is read. What follows the layers, norm and head, is
again run by the model, on the states that were read.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from morlaif_hub.bank.attention import (
    ASKING,
    PACKED,
    Asking,
    NotPackableError,
    attended_by,
    attention_configs,
)
from morlaif_hub.bank.in_place import InPlace, Shared, entries
from morlaif_hub.bank.kernels import Kernel
from morlaif_hub.bank.layout import (
    SHORTEST_PREFIX,
    Ids,
    Layout,
    Slices,
    first_places,
    later_places,
    lay_out,
    row_end,
    up_to_read,
)
from morlaif_hub.bank.pooling import Pooled, RowPools, Wanted, pooled_text
from morlaif_hub.bank.probes import ProbeFiles
from morlaif_hub.bank.row import Row
from morlaif_hub.bank.trunk import head_inputs, layer_list, out_of_memory
from morlaif_hub.bank.walk import Visited, Walker

Slot = str | None
"""An adapter's name in the model; None is the model without adapters."""


class PackedScorer:
    """Scores rows of packed texts.

    Args:
        model: A PEFT model of a sequence classifier with one output, or a classifier.
        slots: Names of its adapters. Where there are neither these nor probes, the classifier
            itself is the preference model.
        probes: On the model without adapters.
        pad_token_id: What does not count at a text's end.
        kernel: What multiplies matrices.
        share_prefixes: Whether texts share what they begin with in common.

    Attributes:
        causal: Whether no token sees a later one.

    Raises:
        NotPackableError: If the model's attention cannot be told what a packed row is.
    """

    def __init__(
        self,
        model: Any,
        slots: Sequence[str],
        probes: Sequence[ProbeFiles] = (),
        *,
        pad_token_id: int,
        kernel: Kernel,
        share_prefixes: bool = True,
    ) -> None:
        classifier = model.get_base_model() if slots else model
        layers = layer_list(classifier)
        if layers is None:
            raise NotPackableError(f"{type(classifier).__name__} has no one list of layers")
        self._walker = Walker(classifier, layers)
        itself = () if probes else (None,)
        self._slots: tuple[Slot, ...] = tuple(slots) or itself
        self._entries = entries(classifier, list(layers), slots) if slots else []
        if self._slots == (None,):
            self._entries = [len(layers)]  # as of a head alone
        self._probes, self._pad = tuple(probes), pad_token_id
        self._configs = attention_configs(classifier)
        self._padding_position = _padding_position(classifier)
        self._in_place = InPlace(classifier, kernel.product)
        self._rules = self._ask()
        self.causal = all(rule.causal for rule in self._rules)
        self._sharing = self.causal and share_prefixes and self._padding_position is None

    @staticmethod
    def order(texts: Sequence[Ids]) -> list[Ids]:
        """Return texts in the order in which they are packed: neighbours begin alike."""
        return sorted(texts)

    def end(self, texts: Sequence[Ids], start: int, tokens: int) -> int:
        """Return where the row that begins at a place of ordered texts ends.

        Args:
            texts: From `order`.
            start: The row's first.
            tokens: That a row of several texts may have beside what they all begin with.
        """
        return row_end(texts, start, row_tokens=tokens, sharing=self._sharing)

    def trials(self, texts: Sequence[Ids], starts: Sequence[int]) -> list[Tensor]:
        """Return scores of ordered texts in each way in which adapters are applied."""
        found = []
        for merged_from in (1, len(texts) * max(map(len, texts)) + 1):
            with self._in_place.merging(merged_from):
                found.append(self.score(texts, starts))
        return found

    @torch.inference_mode()
    def score(self, texts: Sequence[Ids], starts: Sequence[int]) -> Tensor:
        """Return the raw score of every text by every adapter, then by every probe.

        Args:
            texts: One row, in order.
            starts: Of each, the first token that counts in a probe's mean.

        Returns:
            float32 on the CPU, shape (texts, adapters and probes).
        """
        row = self._row(texts)
        layers = {probe.layer for probe in self._probes}
        pools = RowPools(layers, self._paths(row, texts, starts))
        with self._in_place.applied() as choice, attended_by(row, self._configs, PACKED):
            finals: dict[Slot, Tensor] = {}
            for stage in self._stages():
                choice.slot = stage.begins
                bare = stage.begins is None
                trunk = row.trunk({entry for _, entry in stage.slots}, pools if bare else None)
                for entry, group in groupby(stage.slots, key=lambda one: one[1]):
                    slots = [slot for slot, _ in group]
                    shared = Shared([trunk.states[entry]]) if len(slots) > 1 else None
                    for choice.slot in slots:
                        finals[choice.slot] = row.finish(trunk, entry, shared)
            columns = []
            for choice.slot, entry in zip(self._slots, self._entries, strict=True):
                bare = entry > self._walker.last
                columns.append(row.tail(finals[None if bare else choice.slot]).float())
        columns += [probe.score(pools.found[probe.layer]) for probe in self._probes]
        return torch.stack(columns, dim=1).cpu()

    @torch.no_grad()
    def pooled(self, texts: Sequence[Ids], starts: Sequence[int], wanted: Wanted) -> list[Pooled]:
        """Return what the model without adapters makes of texts.

        Args:
            texts: One row, in order.
            starts: Of each, the first token that counts in the mean.
            wanted: What is wanted of it.
        """
        row = self._row(texts)
        pools = RowPools(wanted.layers, self._paths(row, texts, starts))
        depths = set() if wanted.entering is None else {wanted.entering}
        at_head: Tensor | None = None
        with self._in_place.applied(), attended_by(row, self._configs, PACKED):
            if wanted.head:
                depths.add(min(self._walker.last, max(wanted.layers + tuple(depths), default=0)))
            trunk = row.trunk(depths, pools)
            if wanted.head:
                with head_inputs(self._walker.classifier) as seen:
                    row.tail(row.finish(trunk, max(depths)))
                at_head = seen[0].flatten(1).float().cpu()
        entering = None if wanted.entering is None else trunk.states[wanted.entering][0].cpu()
        found = []
        for i, read in enumerate(row.layout.reads):
            whole = None
            if entering is not None:
                whole = torch.cat([entering[start:end] for start, end in read.path])
            head = None if at_head is None else at_head[i]
            found.append(pooled_text(pools.found, wanted, i, read=head, entering=whole))
        return found

    def _stages(self) -> "Iterator[_Stage]":
        """Yield what begins with one trunk: first the bare base's, then those with their own."""
        last = self._walker.last
        shared: dict[Slot, int] = {}
        for slot, entry in zip(self._slots, self._entries, strict=True):
            if entry > last:
                shared[None] = last  # a head alone: the states are those of the base
            elif entry >= 0:
                shared[slot] = entry
        if shared or self._probes:
            yield _Stage(None, sorted(shared.items(), key=lambda one: one[1]))
        for slot, entry in zip(self._slots, self._entries, strict=True):
            if entry < 0:
                yield _Stage(slot, [(slot, 0)])

    def _laid_out(self, texts: Sequence[Ids]) -> Layout:
        return lay_out(
            texts,
            shortest_prefix=SHORTEST_PREFIX if self._sharing else None,
            read_first=not self.causal,
        )

    def _paths(self, row: Row, texts: Sequence[Ids], starts: Sequence[int]) -> list[Slices]:
        """Return the slices that hold each text's tokens from its start on, without padding."""
        paths = []
        for read, text, start in zip(row.layout.reads, texts, starts, strict=True):
            counted = first_places(read.path, len(up_to_read(text, self._pad)))
            paths.append(later_places(counted, start))
        return paths

    def _row(self, texts: Sequence[Ids]) -> Row:
        layout = self._laid_out(texts)
        return Row(
            self._walker,
            self._rules,
            layout=layout,
            positions=self._numbered(layout),
            choice=self._in_place.choice,
        )

    def _ask(self) -> list[Any]:
        """Return who sees whom in each layer, as transformers says it."""
        asked = Asking(len(self._walker.layers))
        ids = torch.tensor([[0, 1]], device=self._walker.classifier.device)
        name = type(self._walker.classifier).__name__

        def look(at: Visited) -> Any:
            asked.layer = at.index
            return self._walker.learn(at)

        try:
            with attended_by(asked, self._configs, ASKING), self._in_place.applied():
                self._walker.walk(ids, ids, look)
        except Exception as error:  # attention of its own fails on what is no mask in any way
            if out_of_memory(error):
                raise
            raise NotPackableError(
                f"{name} has attention of its own kind, which cannot be asked who sees whom "
                f"({type(error).__name__}: {error})"
            ) from error
        return asked.rules(name)

    def _numbered(self, layout: Layout) -> Tensor:
        """Return each token's number in its text, as the model's embeddings count, (1, tokens).

        Most count from 0. A table of positions with a place for padding counts from after that
        place, and counts no padding.
        """
        pad, device = self._padding_position, self._walker.classifier.device
        if pad is None:
            return torch.tensor([layout.positions], device=device)
        counted = (torch.tensor(layout.ids, device=device) != pad).long()
        numbers = [counted[node.start : node.end].cumsum(0) for node in layout.nodes]
        return (torch.cat(numbers) * counted + pad)[None]


class _Stage(NamedTuple):
    """Adapters that go on from one trunk: the slot whose trunk it is, and each one's entry."""

    begins: Slot
    slots: list[tuple[Slot, int]]


def _padding_position(model: nn.Module) -> int | None:
    """Return the place for padding in a model's table of positions, if it has such a place."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None
