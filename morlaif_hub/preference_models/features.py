"""What a frozen base makes of texts, computed once for all principles and epochs.

Two things are kept of every text: the states that enter the first layer to be trained, from which
training goes on, and the state that a score head reads, on which its start is fitted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.layout import Ids
from morlaif_hub.bank.trunk import SharedTrunk, layer_list


class FrozenFeatures:
    """The states of texts in a frozen classifier.

    Args:
        model: A sequence classifier without adapters.
        depth: Number of layers below the first one that will be trained.
        pad_token_id: What batches are padded with.
    """

    def __init__(self, model: Any, *, depth: int, pad_token_id: int) -> None:
        self.depth = depth if layer_list(model) is not None else 0
        self._engine = Engine(model, pad_token_id=pad_token_id, adapters={})
        self._entering: dict[Ids, Tensor] = {}
        self._read: dict[Ids, Tensor] = {}

    def add(
        self, sequences: Sequence[Ids], *, progress: Callable[[int], None] | None = None
    ) -> None:
        """Compute and keep the states of token sequences; known ones cost nothing."""
        new = [s for s in sequences if s not in self._read]
        for ids, states in self._engine.features(new, self.depth, progress=progress):
            self._read[ids] = states.read
            if self.depth > 0:
                self._entering[ids] = states.entering

    def read_out(self, sequences: Sequence[Ids]) -> Tensor:
        """Return what the score head reads, float32, shape (sequences, width)."""
        return torch.stack([self._read[s] for s in sequences])

    @contextmanager
    def trained_on(self, model: Any) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Within this context a model with adapters starts from the kept states.

        Yields:
            A function to be told each batch's ids and mask just before the model is called.
        """
        if self.depth == 0:
            yield lambda _ids, _mask: None
            return
        waiting: list[Ids] = []

        def announce(input_ids: Tensor, attention_mask: Tensor) -> None:
            lengths = attention_mask.sum(1).tolist()
            rows = zip(input_ids.tolist(), lengths, strict=True)
            waiting[:] = [tuple(row[:length]) for row, length in rows]

        def find(tokens: int) -> Tensor:
            states = pad_sequence([self._entering[ids] for ids in waiting], batch_first=True)
            missing = tokens - states.shape[1]
            return nn.functional.pad(states, (0, 0, 0, missing)).to(model.device)

        with SharedTrunk(model, self.depth).resumed(find):
            yield announce
