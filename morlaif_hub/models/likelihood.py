"""Log-probabilities under a language model, with what texts share computed once.

Texts come as branches: a prefix and its continuations. Where prefixes begin alike, that beginning
is run once, then what follows it in each prefix, then the continuations: each time the key/value
cache of what comes before is copied to the rows that go on from it. The results equal those of
whole texts run one by one, up to rounding.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from morlaif_hub.models.formats import common_prefix
from morlaif_hub.models.language_model import LanguageModel

Progress = Callable[[int], None]
BATCH_TOKENS = 4096
ROW_TOKENS = 2048  # of continuations of similar length that are run together
LOGIT_ROWS = 128  # rows of vocabulary-sized logits held at once: few enough to stay in caches


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
    for batch in in_batches(branches):
        chosen = [branches[i] for i in batch]
        targets = [c for b in chosen for c in b.continuations]
        states = predicting_states(language_model, chosen)
        flat = _gather(language_model, states, torch.tensor([i for c in targets for i in c]))
        rows = iter(torch.split(flat, [len(c) for c in targets]))
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
    for batch in in_batches(branches):
        chosen = [branches[i] for i in batch]
        last = torch.stack([row[-1] for row in _states(language_model, chosen)])
        parts = [log_probabilities(language_model, rows) for rows in last.split(LOGIT_ROWS)]
        picked = torch.cat([part[:, wanted] for part in parts]).double().cpu().numpy()
        counts = np.cumsum([len(b.continuations) for b in chosen])[:-1]
        for i, rows in zip(batch, np.split(picked, counts), strict=True):
            results[i] = rows
        if progress:
            progress(len(batch))
    return results


def in_batches(branches: Sequence[Branches]) -> Iterator[list[int]]:
    """Yield the indices of branches that are run together, of similar length where possible.

    Branches whose prefixes begin alike are next to each other, and a padded batch stays within
    the token budget if it has more than one.
    """
    sizes = [len(b.prefix) + max(map(len, b.continuations)) for b in branches]
    families = [
        sorted(family, key=lambda i: sizes[i], reverse=True)
        for family in _families([b.prefix for b in branches])
    ]
    batch: list[int] = []
    rows = longest = 0
    for family in sorted(families, key=lambda family: sizes[family[0]], reverse=True):
        for i in family:
            more = len(branches[i].continuations)
            if batch and (rows + more) * max(longest, sizes[i]) > BATCH_TOKENS:
                yield batch
                batch, rows, longest = [], 0, 0
            batch.append(i)
            rows, longest = rows + more, max(longest, sizes[i])
    if batch:
        yield batch


def _families(prefixes: Sequence[list[int]]) -> list[list[int]]:
    """Group the indices of prefixes that share at least half of their first one."""
    families: list[list[int]] = []
    for i in sorted(range(len(prefixes)), key=lambda i: prefixes[i]):
        if families:
            first = prefixes[families[-1][0]]
            if 2 * common_prefix([first, prefixes[i]]) >= len(first):
                families[-1].append(i)
                continue
        families.append([i])
    return families


def predicting_states(language_model: LanguageModel, branches: Sequence[Branches]) -> Tensor:
    """Return the final states that predict the tokens of all continuations, one after the other.

    Args:
        language_model: The model.
        branches: One of `in_batches`.

    Returns:
        Shape (tokens of all continuations, width).
    """
    return torch.cat([row[:-1] for row in _states(language_model, branches)])


class _Run(NamedTuple):
    """What a model made of rows of tokens.

    Attributes:
        states: Final ones of the new tokens, shape (rows, tokens, width).
        last: That of each row's last token, shape (rows, width).
        cache: Keys and values of all tokens so far.
        mask: Which of these tokens are none of padding, shape (rows, tokens so far).
    """

    states: Tensor
    last: Tensor
    cache: Any
    mask: Tensor


@torch.inference_mode()
def _states(language_model: LanguageModel, branches: Sequence[Branches]) -> list[Tensor]:
    """Return the final states of every continuation, shape (1 + its length, width).

    The first one is that of the prefix's last token.
    """
    device = language_model.model.device
    prefixes = _prefixes(language_model, [b.prefix for b in branches])
    continuations = [c for b in branches for c in b.continuations]
    owner = torch.tensor([i for i, b in enumerate(branches) for _ in b.continuations])
    results = [prefixes.last] * len(continuations)
    for rows in _similar(continuations):
        owners = owner[rows].to(device)
        run = _run(language_model, [continuations[r] for r in rows], prefixes, owners)
        for r, states in zip(rows, run.states, strict=True):
            own = states[: len(continuations[r])]
            results[r] = torch.cat([prefixes.last[owner[r], None], own])
    return results


def _prefixes(language_model: LanguageModel, prefixes: Sequence[list[int]]) -> _Run:
    """Run prefixes, those that begin alike from where they part.

    Not so under attention with a window, which is counted in places: what follows a beginning is
    padded where it ends, and what comes then would be too far from it.
    """
    families = _families(prefixes)
    layers = DynamicCache(config=language_model.model.config).layers
    if len(families) == len(prefixes) or any(getattr(its, "is_sliding", True) for its in layers):
        return _run(language_model, prefixes)
    shared = [common_prefix([prefixes[i] for i in family]) for family in families]
    if not all(shared):  # a prefix of one token has no beginning of its own
        return _run(language_model, prefixes)
    stems = [prefixes[family[0]][:n] for family, n in zip(families, shared, strict=True)]
    of = {i: f for f, family in enumerate(families) for i in family}
    rests = [prefix[shared[of[i]] :] for i, prefix in enumerate(prefixes)]
    owner = torch.tensor([of[i] for i in range(len(prefixes))], device=language_model.model.device)
    return _run(language_model, rests, _run(language_model, stems), owner)


def _similar(rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield the indices of rows to run together: of similar length, so that few are padded."""
    portion: list[int] = []
    for r in sorted(range(len(rows)), key=lambda r: len(rows[r]), reverse=True):
        if portion and (len(portion) + 1) * len(rows[portion[0]]) > ROW_TOKENS:
            yield portion
            portion = []
        portion.append(r)
    if portion:
        yield portion


def _run(
    language_model: LanguageModel,
    rows: Sequence[list[int]],
    before: _Run | None = None,
    owner: Tensor | None = None,
) -> _Run:
    """Run rows of tokens, each on top of the row of `before` that `owner` names."""
    device = language_model.model.device
    # Padding comes before the first tokens and after later ones, not in between.
    side = "left" if before is None else "right"
    tokens = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tokens, batch_first=True, padding_side=side).to(device)
    new = [torch.ones_like(row) for row in tokens]
    mask = pad_sequence(new, batch_first=True, padding_side=side).to(device)
    last = mask.cumsum(1).argmax(1)
    cache, whole = None, mask
    if before is not None and owner is not None:
        whole = torch.cat([before.mask[owner], mask], 1)
        cache = copy.copy(before.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(owner)
    outputs = language_model.model.base_model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=(whole.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    states = outputs.last_hidden_state
    at_last = states[torch.arange(len(rows), device=device), last]
    return _Run(states, at_last, outputs.past_key_values, whole)


@torch.inference_mode()
def _gather(language_model: LanguageModel, states: Tensor, ids: Tensor) -> Tensor:
    parts = [
        log_probabilities(language_model, rows).gather(1, targets[:, None].to(rows.device))[:, 0]
        for rows, targets in zip(states.split(LOGIT_ROWS), ids.split(LOGIT_ROWS), strict=True)
    ]
    return torch.cat(parts).double().cpu()


@torch.no_grad()
def log_probabilities(language_model: LanguageModel, states: Tensor) -> Tensor:
    """Return the log-probabilities of all tokens after final states, float32.

    Args:
        language_model: The model.
        states: As its backbone returns them, shape (rows, width).

    Returns:
        In nats, shape (rows, vocabulary).
    """
    return torch.log_softmax(next_token_logits(language_model.model, states), dim=-1)


def next_token_logits(model: Any, states: Tensor) -> Tensor:
    """Return what a causal language model's head makes of final states, float32.

    Args:
        model: Whose head it is.
        states: As its backbone returns them, shape (..., width).

    Returns:
        Shape (..., vocabulary).
    """
    logits: Tensor = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:  # Gemma 2: arXiv:2408.00118, section 2
        logits = cap * torch.tanh(logits / cap)
    return logits
