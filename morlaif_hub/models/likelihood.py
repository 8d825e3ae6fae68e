"""Log-probabilities under a language model, with what texts share computed once.

Texts come as branches: a prefix and its continuations. A batch of prefixes is run once, its
key/value cache is copied to the rows of the continuations, and those are run on top of it. The
results equal those of whole texts run one by one, up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from morlaif_hub.models.language_model import LanguageModel

Progress = Callable[[int], None]
BATCH_TOKENS = 4096
LOGIT_ROWS = 512  # rows of vocabulary-sized logits held at once


class Branches(NamedTuple):
    """A prefix of at least one token id and continuations of at least one id each."""

    prefix: list[int]
    continuations: list[list[int]]


def continuation_log_probabilities(
    language_model: LanguageModel, branches: Sequence[Branches], *, progress: Progress | None = None
) -> list[list[NDArray[np.float64]]]:
    """Return the log-probability of every token of every continuation.

    Args:
        language_model: The model.
        branches: Prefixes with their continuations.
        progress: Told how many branches were just done.

    Returns:
        For each of the branches, for each continuation, an array of its length, in nats, <= 0.
    """
    results: list[list[NDArray[np.float64]]] = [[] for _ in branches]
    for batch in _batches(branches):
        chosen = [branches[i] for i in batch]
        states, lengths = _states(language_model, chosen)
        targets = [torch.tensor(c) for b in chosen for c in b.continuations]
        flat = torch.cat(
            [
                _gather(language_model, row[:n], ids)
                for row, n, ids in zip(states, lengths, targets, strict=True)
            ]
        )
        rows = iter(torch.split(flat, lengths))
        for i in batch:
            results[i] = [next(rows).numpy() for _ in branches[i].continuations]
        if progress:
            progress(len(batch))
    return results


def next_token_log_probabilities(
    language_model: LanguageModel,
    branches: Sequence[Branches],
    token_ids: Sequence[int],
    *,
    progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of some tokens right after each continuation.

    Returns:
        For each of the branches, shape (continuations, token_ids), in nats, <= 0.
    """
    results: list[NDArray[np.float64]] = [np.empty(0)] * len(branches)
    wanted = torch.tensor(list(token_ids))
    for batch in _batches(branches):
        chosen = [branches[i] for i in batch]
        states, lengths = _states(language_model, chosen)
        last = torch.stack([row[n] for row, n in zip(states, lengths, strict=True)])
        picked = _log_probabilities(language_model, last)[:, wanted].numpy()
        counts = np.cumsum([len(b.continuations) for b in chosen])[:-1]
        for i, rows in zip(batch, np.split(picked, counts), strict=True):
            results[i] = rows
        if progress:
            progress(len(batch))
    return results


def _batches(branches: Sequence[Branches]) -> Iterator[list[int]]:
    """Group branches of similar length so that a padded batch stays within the token budget."""

    def longest(i: int) -> int:
        return len(branches[i].prefix) + max(len(c) for c in branches[i].continuations)

    batch: list[int] = []
    rows = 0
    for i in sorted(range(len(branches)), key=longest, reverse=True):
        more = len(branches[i].continuations)
        if batch and (rows + more) * longest(batch[0]) > BATCH_TOKENS:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += more
    if batch:
        yield batch


@torch.inference_mode()
def _states(
    language_model: LanguageModel, branches: Sequence[Branches]
) -> tuple[Tensor, list[int]]:
    """Return final states and lengths of all continuations of a batch of branches.

    States have shape (rows, 1 + longest continuation, width): row r, position 0 is the last token
    of its prefix, so position j predicts the continuation's token j.
    """
    backbone = language_model.model.base_model
    prefixes = [torch.tensor(b.prefix) for b in branches]
    counts = torch.tensor([len(b.continuations) for b in branches])
    owner = torch.repeat_interleave(torch.arange(len(branches)), counts)
    continuations = [torch.tensor(c) for b in branches for c in b.continuations]
    prefix_ids, prefix_mask = _padded(prefixes)
    prefix_lengths = prefix_mask.sum(1)
    first = backbone(
        input_ids=prefix_ids,
        attention_mask=prefix_mask,
        position_ids=_positions(prefix_ids),
        use_cache=True,
    )
    before = first.last_hidden_state[torch.arange(len(branches)), prefix_lengths - 1]
    cache: Any = first.past_key_values
    cache.batch_select_indices(owner)
    ids, mask = _padded(continuations)
    second = backbone(
        input_ids=ids,
        attention_mask=torch.cat([prefix_mask[owner], mask], 1),
        position_ids=prefix_lengths[owner, None] + _positions(ids),
        past_key_values=cache,
        use_cache=True,
    )
    states = torch.cat([before[owner, None], second.last_hidden_state], 1)
    return states, [len(c) for c in continuations]


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence(list(rows), batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def _positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand_as(ids)


@torch.inference_mode()
def _gather(language_model: LanguageModel, states: Tensor, ids: Tensor) -> Tensor:
    parts = [
        _log_probabilities(language_model, rows).gather(1, targets[:, None])[:, 0]
        for rows, targets in zip(states.split(LOGIT_ROWS), ids.split(LOGIT_ROWS), strict=True)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def _log_probabilities(language_model: LanguageModel, states: Tensor) -> Tensor:
    logits = language_model.model.get_output_embeddings()(states).float()
    cap = getattr(language_model.model.config, "final_logit_softcapping", None)
    if cap:  # Gemma 2: arXiv:2408.00118, section 2
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1).double()
