"""Scoring padded batches with many adapters, for models whose texts cannot be packed.

The model runs whole batches of texts of about equal length; the layers below the first adapted one
are still run once for all adapters, where the model's layers can be skipped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from morlaif_hub.bank.in_place import entries
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.trunk import Features, SharedTrunk, head_inputs, layer_list


class PaddedScorer:
    """Scores padded batches of texts.

    Args:
        model: A PEFT model of a sequence classifier with one output, or a classifier.
        slots: Names of its adapters; none if the classifier itself is the preference model.
        pad_token_id: What batches are padded with, on the right.
        share_trunk: Whether the layers that no adapter changes run once for all of them.
        equal_lengths: Batch texts of one length only, for models in which padding is seen.
    """

    causal = False

    def __init__(
        self,
        model: Any,
        slots: Sequence[str],
        *,
        pad_token_id: int,
        share_trunk: bool = True,
        equal_lengths: bool = False,
    ) -> None:
        self._model = model
        self._slots = tuple(slots)
        self._pad = pad_token_id
        self._equal_lengths = equal_lengths
        layers = layer_list(model)
        depth = 0
        if layers is not None and slots and share_trunk:
            first = min(entries(model, list(layers), slots))
            depth = max(0, min(first, len(layers) - 1))
        self._trunk = SharedTrunk(model, depth)

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

    def trials(self, texts: Sequence[Ids]) -> list[Tensor]:
        """Return scores of a batch in each way that there is: one."""
        return [self.score(texts)]

    @torch.inference_mode()
    def score(self, texts: Sequence[Ids]) -> Tensor:
        """Return every adapter's raw score of every text.

        Args:
            texts: One batch.

        Returns:
            float32 on the CPU, shape (texts, adapters).
        """
        ids, mask = self._inputs(texts)
        if not self._slots:
            return self._logits(ids, mask).float().cpu()
        if self._trunk.depth == 0:
            return self._adapted(ids, mask)
        states = self._trunk.states(ids, mask)
        with self._trunk.resumed(lambda _tokens: states):
            return self._adapted(ids, mask)

    @torch.no_grad()
    def features(self, texts: Sequence[Ids], depth: int) -> list[Features]:
        """Return what the model without adapters makes of texts.

        Args:
            texts: One batch.
            depth: The layer whose entering states are wanted.
        """
        ids, mask = self._inputs(texts)
        entering: list[Tensor] = []

        def keep(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            entering.append(given[0] if given else named["hidden_states"])

        layers = layer_list(self._model)
        hook = layers[depth].register_forward_pre_hook(keep, with_kwargs=True) if layers else None
        try:
            with head_inputs(self._model) as seen:
                self._logits(ids, mask)
        finally:
            if hook:
                hook.remove()
        read = self._at_read_out(seen[0], ids).float().cpu()
        states = entering[0].cpu() if entering else ids.new_empty(len(texts), ids.shape[1], 0)
        return [Features(states[i, : len(text)].clone(), read[i]) for i, text in enumerate(texts)]

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
