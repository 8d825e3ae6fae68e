"""Scoring token sequences with every adapter on one base, the shared trunk computed once."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from morlaif_hub.bank.adapters import AdapterFiles, put_on
from morlaif_hub.bank.trunk import SharedTrunk, first_adapted_layer

BATCH_TOKENS = 4096


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the report that a classifier's head is new: an adapter brings its own."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def load_classifier(
    folder: Path, *, dtype: torch.dtype, pad_token_id: int, attention: str | None = None
) -> Any:
    """Return a folder's model as a sequence classifier with one output, in evaluation mode.

    Args:
        folder: A local model in safetensors.
        dtype: Of its weights.
        pad_token_id: What its inputs are padded with.
        attention: A name of an attention implementation; None for transformers' choice.
    """
    return load_with_gaps(folder, dtype=dtype, pad_token_id=pad_token_id, attention=attention).model


class Loaded(NamedTuple):
    """A classifier, and which of its weights its folder did not have.

    Attributes:
        model: In evaluation mode; what was not there has random numbers.
        gaps: The shape that the folder had instead, None for nothing, by the weight's name.
    """

    model: Any
    gaps: dict[str, tuple[int, ...] | None]


def load_with_gaps(
    folder: Path, *, dtype: torch.dtype, pad_token_id: int, attention: str | None = None
) -> Loaded:
    """Return what `load_classifier` does, and what somebody else has to bring."""
    with quiet_loading():
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model.config.get_text_config().pad_token_id = pad_token_id
    gaps: dict[str, tuple[int, ...] | None] = dict.fromkeys(sorted(found["missing_keys"]))
    gaps |= {name: tuple(shape) for name, shape, _ in found["mismatched_keys"]}
    return Loaded(model.eval(), gaps)


class Engine:
    """One classifier and the ways in which it scores: its adapters, or itself.

    Args:
        model: A sequence classifier with one output.
        pad_token_id: What batches are padded with, on the right.
        adapters: Checked adapters by objective, in order; none if the model itself is the one
            preference model.

    Raises:
        BaseMismatchError: If an adapter's tensors are not those that this model takes.
    """

    def __init__(
        self, model: Any, *, pad_token_id: int, adapters: Mapping[str, AdapterFiles]
    ) -> None:
        self._pad = pad_token_id
        self._slots = [f"pm{i}" for i in range(len(adapters))]
        self.model = model
        for slot, files in zip(self._slots, adapters.values(), strict=True):
            self.model = put_on(self.model, slot, files)
        self.model.requires_grad_(False).eval()
        depth = first_adapted_layer(self.model) if adapters else 0
        self._trunk = SharedTrunk(self.model, depth)

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return every adapter's raw score of every sequence.

        Args:
            sequences: Token ids. Equal ones are scored once.
            progress: Told how many different sequences were just scored.

        Returns:
            float32 on the CPU, shape (sequences, adapters), or (sequences, 1) without adapters.
        """
        distinct = sorted({tuple(s) for s in sequences}, key=len)
        rows: dict[tuple[int, ...], Tensor] = {}
        for batch in self._batches(distinct):
            scores = self._score_batch(batch).float().cpu()
            rows.update(zip(batch, scores, strict=True))
            if progress:
                progress(len(batch))
        if not sequences:
            return torch.empty(0, max(len(self._slots), 1))
        return torch.stack([rows[tuple(s)] for s in sequences])

    @staticmethod
    def _batches(sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        for sequence in sequences:  # sorted by length, so the newest is the longest
            if batch and (len(batch) + 1) * len(sequence) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _score_batch(self, batch: Sequence[tuple[int, ...]]) -> Tensor:
        rows = [torch.tensor(sequence or (self._pad,)) for sequence in batch]
        device = self.model.device
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad).to(device)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
        if not self._slots:
            return self._logits(ids, mask)
        if self._trunk.depth == 0:
            return torch.cat([self._adapted(slot, ids, mask) for slot in self._slots], dim=1)
        states = self._trunk.states(ids, mask)
        with self._trunk.resumed(lambda _tokens: states):
            return torch.cat([self._adapted(slot, ids, mask) for slot in self._slots], dim=1)

    def _adapted(self, slot: str, ids: Tensor, mask: Tensor) -> Tensor:
        self.model.set_adapter(slot, inference_mode=True)
        return self._logits(ids, mask)

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits
