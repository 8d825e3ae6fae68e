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

from morlaif_hub.bank.trunk import SharedTrunk, layer_list
from morlaif_hub.errors import TrainingError

BATCH_TOKENS = 4096
Ids = tuple[int, ...]


def score_head(model: Any) -> nn.Module:
    """Return the linear layer that makes a classifier's score.

    Raises:
        TrainingError: If the model has no head of a known kind.
    """
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
    raise TrainingError(
        f"{type(model).__name__} has no linear 'score' or 'classifier' head; use a base whose "
        "sequence classifier ends in one, such as Llama, Qwen, Gemma, GPT-2 or BERT"
    )


class FrozenFeatures:
    """The states of texts in a frozen classifier.

    Args:
        model: A sequence classifier without adapters, in evaluation mode.
        depth: Number of layers below the first one that will be trained.
        pad_token_id: What batches are padded with.
    """

    def __init__(self, model: Any, *, depth: int, pad_token_id: int) -> None:
        self.depth = depth if layer_list(model) is not None else 0
        self._model = model
        self._pad = pad_token_id
        self._entering: dict[Ids, Tensor] = {}
        self._read: dict[Ids, Tensor] = {}

    @torch.no_grad()
    def add(
        self, sequences: Sequence[Ids], *, progress: Callable[[int], None] | None = None
    ) -> None:
        """Compute and keep the states of token sequences; known ones cost nothing."""
        new = sorted({s for s in sequences if s not in self._read}, key=len)
        while new:
            rows = max(1, BATCH_TOKENS // len(new[-1]))
            batch, new = new[-rows:], new[:-rows]
            self._run(batch)
            if progress:
                progress(len(batch))

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

    def _run(self, batch: Sequence[Ids]) -> None:
        model, device = self._model, self._model.device
        rows = [torch.tensor(ids) for ids in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad).to(device)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
        seen: dict[str, Tensor] = {}
        hooks = [score_head(model).register_forward_pre_hook(_keep(seen, "head"))]
        layers = layer_list(model)
        if self.depth > 0 and layers is not None:
            entry = layers[self.depth]
            hooks.append(entry.register_forward_pre_hook(_keep(seen, "entry"), with_kwargs=True))
        try:
            model(input_ids=ids, attention_mask=mask)
        finally:
            for hook in hooks:
                hook.remove()
        read = _at_read_out(seen["head"], ids, self._pad)
        for i, key in enumerate(batch):
            self._read[key] = read[i].float().cpu()
            if "entry" in seen:
                self._entering[key] = seen["entry"][i, : len(key)].cpu().clone()


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], *kwargs: dict[str, Any]) -> None:
        seen[name] = args[0] if args else kwargs[0]["hidden_states"]

    return hook


def _at_read_out(states: Tensor, ids: Tensor, pad: int) -> Tensor:
    """Return the state that transformers' classifiers read: at the right-most id that is no pad."""
    if states.dim() == 2:  # encoders pool before their head
        return states
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(ids != pad, positions, -1).amax(1).clamp(min=0)
    return states[torch.arange(len(ids), device=ids.device), last]
