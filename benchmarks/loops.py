"""What a bank is measured against: PEFT's own ways to score with many adapters on one base."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.floors import Texts, by_length

BATCH = 8
MIXED_TOKENS = 8192


Loop = Callable[[Texts, Sequence[str]], Tensor]
"""Scores texts with adapters by name: float32, shape (texts, names), in the order of the texts."""


class Opponents:
    """One base with all adapters on it, scored in the ways that PEFT has.

    Args:
        model: From `with_adapters`.
        pad_token_id: What texts are padded with, on the right.
    """

    def __init__(self, model: PeftModel, *, pad_token_id: int) -> None:
        self._model = model
        self._pad = pad_token_id

    @torch.inference_mode()
    def hot_swap(self, texts: Texts, names: Sequence[str]) -> Tensor:
        """Return scores by one adapter after the other, all texts padded to the longest of all.

        Mini-batches have 8 texts, in the given order.
        """
        ids, mask = self._padded(texts)
        columns = []
        for name in names:
            self._model.set_adapter(name, inference_mode=True)
            batches = zip(ids.split(BATCH), mask.split(BATCH), strict=True)
            columns.append(torch.cat([self._logits(i, m) for i, m in batches]))
        return torch.stack(columns, dim=1)

    @torch.inference_mode()
    def sorted_hot_swap(self, texts: Texts, names: Sequence[str]) -> Tensor:
        """Return scores by one adapter after the other, texts of similar length together.

        Mini-batches have 8 texts, padded to the longest of the batch.
        """
        scores = torch.empty(len(texts), len(names))
        batches = [(rows, *self._padded([texts[i] for i in rows])) for rows in _batches(texts)]
        for column, name in enumerate(names):
            self._model.set_adapter(name, inference_mode=True)
            for rows, ids, mask in batches:
                scores[rows, column] = self._logits(ids, mask)
        return scores

    @torch.inference_mode()
    def mixed(self, texts: Texts, names: Sequence[str]) -> Tensor:
        """Return scores by mixed batches: every text once for each adapter, side by side.

        A batch has 8 texts of similar length, and as many adapters as fit into 8,192 tokens.
        """
        scores = torch.empty(len(texts), len(names))
        for rows in _batches(texts):
            ids, mask = self._padded([texts[i] for i in rows])
            at_once = max(MIXED_TOKENS // ids.numel(), 1)
            for start in range(0, len(names), at_once):
                chosen = names[start : start + at_once]
                logits = self._logits(
                    ids.repeat(len(chosen), 1),
                    mask.repeat(len(chosen), 1),
                    adapter_names=[name for name in chosen for _ in rows],
                )
                columns = logits.view(len(chosen), len(rows)).T
                scores[rows, start : start + len(chosen)] = columns
        return scores

    @torch.inference_mode()
    def base_forward(self, texts: Texts) -> None:
        """Run the base alone, texts of similar length together, in mini-batches of 8."""
        with self._model.disable_adapter():
            for rows in _batches(texts):
                self._logits(*self._padded([texts[i] for i in rows]))

    def _padded(self, texts: Texts) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor(text) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def _logits(self, ids: Tensor, mask: Tensor, **how: Any) -> Tensor:
        # No cache: it is of no use without a next token, and costs its opponents a little time.
        outputs = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **how)
        logits: Tensor = outputs.logits[:, 0].float()
        return logits


def _batches(texts: Texts) -> Iterator[list[int]]:
    ordered = by_length(texts)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]
