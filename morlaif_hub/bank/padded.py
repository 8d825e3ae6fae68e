"""Scoring padded batches with many adapters, for models whose texts cannot be packed.

The model runs whole batches of texts of about equal length; the layers below the first adapted one
are still run once for all adapters, where the model's layers can be skipped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morlaif_hub.bank.bare import BareBase
from morlaif_hub.bank.in_place import entries
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.pooling import Pooled, Wanted, pooled_batch, pooled_text
from morlaif_hub.bank.probes import ProbeFiles
from morlaif_hub.bank.trunk import SharedTrunk, layer_list


class PaddedScorer:
    """Scores padded batches of texts.

    Args:
        model: A PEFT model of a sequence classifier with one output, or a classifier.
        slots: Names of its adapters. Where there are neither these nor probes, the classifier
            itself is the preference model.
        probes: On the model without adapters.
        pad_token_id: What batches are padded with, on the right.
        share_trunk: Whether the layers that no adapter changes run once for all of them, and those
            above the deepest probe not at all if there are only probes.
        equal_lengths: Batch texts of one length only, for models in which padding is seen.
    """

    causal = False

    def __init__(
        self,
        model: Any,
        slots: Sequence[str],
        probes: Sequence[ProbeFiles] = (),
        *,
        pad_token_id: int,
        share_trunk: bool = True,
        equal_lengths: bool = False,
    ) -> None:
        self._model = model
        self._slots, self._probes = tuple(slots), tuple(probes)
        self._pad = pad_token_id
        self._equal_lengths = equal_lengths
        layers = layer_list(model)
        depth = 0
        if layers is not None and slots and share_trunk:
            first = min(entries(model, list(layers), slots))
            depth = max(0, min(first, len(layers) - 1))
        self._trunk = SharedTrunk(model, depth)
        self._bare = BareBase(model, layers, watched=share_trunk)

    @staticmethod
    def order(texts: Sequence[Ids]) -> list[Ids]:
        """Return texts in the order in which they are batched: neighbours are about as long."""
        return sorted(texts, key=len)

    def end(self, texts: Sequence[Ids], start: int, tokens: int) -> int:
        """Return where the batch that begins at a place of ordered texts ends.

        Args:
            texts: From `order`.
            start: The batch's first.
            tokens: With padding, that a batch of several texts may have.
        """
        for end in range(start + 1, len(texts)):
            length = len(texts[end])
            padded = self._equal_lengths and length != len(texts[start])
            if padded or (end + 1 - start) * length > tokens:
                return end
        return len(texts)

    def trials(self, texts: Sequence[Ids], starts: Sequence[int]) -> list[Tensor]:
        """Return scores of a batch in each way that there is: one."""
        return [self.score(texts, starts)]

    @torch.inference_mode()
    def score(self, texts: Sequence[Ids], starts: Sequence[int]) -> Tensor:
        """Return the raw score of every text by every adapter, then by every probe.

        Args:
            texts: One batch.
            starts: Of each, the first token that counts in a probe's mean.

        Returns:
            float32 on the CPU, shape (texts, adapters and probes).
        """
        ids, mask = self._inputs(texts)
        if not self._slots and not self._probes:
            return self._logits(ids, mask).float().cpu()
        depth = self._trunk.depth
        states: Tensor | None = None
        columns = []
        if self._probes:
            layers = {probe.layer for probe in self._probes}
            seen = self._bare.run(ids, mask, Wanted(tuple(layers), entering=depth or None))
            states = seen.entering
            pools = {n: pooled_batch(seen.states[n], texts, starts, self._pad) for n in layers}
            columns = [probe.score(pools[probe.layer])[:, None].cpu() for probe in self._probes]
        elif depth > 0:
            states = self._trunk.states(ids, mask)
        if not self._slots:
            return torch.cat(columns, dim=1)
        if states is None:
            return torch.cat([self._adapted(ids, mask), *columns], dim=1)
        with self._trunk.resumed(lambda _tokens: states):
            return torch.cat([self._adapted(ids, mask), *columns], dim=1)

    @torch.no_grad()
    def pooled(self, texts: Sequence[Ids], starts: Sequence[int], wanted: Wanted) -> list[Pooled]:
        """Return what the model without adapters makes of texts.

        Args:
            texts: One batch.
            starts: Of each, the first token that counts in the mean.
            wanted: What is wanted of it.
        """
        ids, mask = self._inputs(texts)
        seen = self._bare.run(ids, mask, wanted)
        pools = {n: pooled_batch(seen.states[n], texts, starts, self._pad) for n in wanted.layers}
        read = None
        if seen.at_head is not None:
            read = self._at_read_out(seen.at_head, ids).float().cpu()
        entering: Tensor | None = None
        if wanted.entering is not None:
            none = ids.new_empty(len(texts), ids.shape[1], 0)
            entering = none.cpu() if seen.entering is None else seen.entering.cpu()
        return [
            pooled_text(
                pools,
                wanted,
                i,
                read=None if read is None else read[i],
                entering=None if entering is None else entering[i, : len(text)].clone(),
            )
            for i, text in enumerate(texts)
        ]

    def _at_read_out(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return the state that a classifier reads: at the right-most id that is no padding."""
        if states.dim() == 2:  # encoders pool before their head
            return states
        positions = torch.arange(ids.shape[1], device=ids.device)
        last = torch.where(ids != self._pad, positions, -1).amax(1).clamp(min=0)
        return states[torch.arange(len(ids), device=ids.device), last]

    def _inputs(self, texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor(text) for text in texts]
        device = self._model.device
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad).to(device)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
        return ids, mask

    def _adapted(self, ids: Tensor, mask: Tensor) -> Tensor:
        columns = []
        for slot in self._slots:
            self._model.set_adapter(slot, inference_mode=True)
            columns.append(self._logits(ids, mask))
        return torch.cat(columns, dim=1).float().cpu()

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        return logits
