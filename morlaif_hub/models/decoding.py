"""A decoding loop for `generate` that spends its time on the model alone.

`generate(custom_generate=decode)` samples from the same distribution as `generate` does. It is
faster where several rows continue one prompt, some end before others, or the vocabulary is large:

- rows with the same prompt share its forward pass;
- rows that have ended leave the batch;
- a nucleus is found among the likeliest tokens, without sorting the vocabulary;
- a token is drawn with one random number, not with one for every token that there is;
- keys and values are written into room that was made once, not copied at every token.

Source:
    arXiv:1904.09751 (nucleus sampling).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

LIKELIEST = 512  # tokens among which a nucleus is looked for first
LEAVING = 8  # rows are taken out once this share (one in so many) of a batch has ended

_OF_ROWS = ("attention_mask", "position_ids", "token_type_ids")
_Kwargs = dict[str, Any]


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: Any,
    chances: Tensor | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """Continue rows until they end; what `generate` calls when it is given as `custom_generate`.

    Random numbers come from PyTorch's global generator, one for each row and token. A model whose
    state is not a plain key/value cache is decoded by `generate`'s own loop, with numbers of that.

    Args:
        model: A causal language model.
        input_ids: Prompts, padded on the left, shape (rows, tokens); equal ones next to each other.
        logits_processor: Applied to every row; nucleus sampling is done here instead.
        stopping_criteria: Whether rows have ended.
        generation_config: Says whether to sample, how long, and the padding.
        chances: The random numbers, uniform in [0, 1), shape (rows, new tokens at most): a row's
            continuation then does not depend on which rows it is sampled with.
        **model_kwargs: As prepared by `generate`.

    Returns:
        Prompts and what continues them, padded on the right, shape (rows, longest).
    """
    if not _plain(model, input_ids, model_kwargs):
        result: Tensor = model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs
        )
        return result
    rows, length = input_ids.shape
    draw = _Draw.of(logits_processor, generation_config)
    room = generation_config.max_length - length
    if draw.sample:
        chances = torch.rand(rows, room) if chances is None else chances
        chances = chances.to(input_ids.device)
    else:
        chances = None
    result = input_ids.new_full((rows, generation_config.max_length), draw.pad)
    result[:, :length] = input_ids
    logits, model_kwargs = _prefill(model, input_ids, model_kwargs, room)
    alive = torch.arange(rows, device=input_ids.device)
    ended = torch.zeros_like(alive, dtype=torch.bool)
    for step in range(room):
        tokens = draw(result[alive, : length + step], logits, chances, (alive, step))
        result[alive, length + step] = torch.where(ended, draw.pad, tokens)
        ended |= stopping_criteria(result[alive, : length + step + 1], None)
        if bool(ended.all()):
            return result[:, : length + step + 1]
        if LEAVING * int(ended.sum()) >= len(ended):
            _select(model_kwargs, (~ended).nonzero()[:, 0])
            alive, tokens, ended = alive[~ended], tokens[~ended], ended[~ended]
        logits = _next(model, result[alive, : length + step + 1], model_kwargs)
    return result


class _Draw(NamedTuple):
    """How the next tokens are chosen."""

    processors: LogitsProcessorList
    sample: bool
    top_p: float
    pad: int

    @classmethod
    def of(cls, processors: LogitsProcessorList, generation_config: Any) -> "_Draw":
        nuclei = [p.top_p for p in processors if isinstance(p, TopPLogitsWarper)]
        others = [p for p in processors if not isinstance(p, TopPLogitsWarper)]
        pad = generation_config._pad_token_tensor
        return cls(
            LogitsProcessorList(others),
            bool(generation_config.do_sample),
            min(nuclei, default=1.0),
            0 if pad is None else int(pad),
        )

    def __call__(
        self, ids: Tensor, logits: Tensor, chances: Tensor | None, at: tuple[Tensor, int]
    ) -> Tensor:
        scores: Tensor = self.processors(ids, logits)
        if chances is None:
            return scores.argmax(dim=-1)
        return drawn(scores.softmax(dim=-1), chances[at], self.top_p)


def drawn(probabilities: Tensor, chances: Tensor, top_p: float = 1.0) -> Tensor:
    """Return a token for each row: the one that a random number falls on.

    Args:
        probabilities: Shape (rows, vocabulary), each row summing to 1.
        chances: Uniform in [0, 1), shape (rows,).
        top_p: The smallest set of likeliest tokens with this probability is drawn from.

    Example:
        >>> drawn(torch.tensor([[0.1, 0.6, 0.3]]), torch.tensor([0.8]), top_p=0.8)
        tensor([2])
    """
    if top_p >= 1.0:
        return _fallen_on(probabilities, chances, None)
    size = probabilities.shape[-1]
    likeliest, ids = probabilities.topk(min(LIKELIEST, size))
    outside = likeliest.double().sum(-1) < top_p
    tokens = ids.gather(1, _fallen_on(likeliest, chances, top_p)[:, None])[:, 0]
    if size > LIKELIEST and bool(outside.any()):  # rows whose nucleus is larger than that
        every, ids = probabilities[outside].sort(descending=True)
        found = _fallen_on(every, chances[outside], top_p)
        tokens[outside] = ids.gather(1, found[:, None])[:, 0]
    return tokens


def _fallen_on(probabilities: Tensor, chances: Tensor, top_p: float | None) -> Tensor:
    """Return the column of each row that its number falls on; for a nucleus, sorted ones."""
    up_to = probabilities.double().cumsum(-1)
    last = torch.full_like(chances, probabilities.shape[-1] - 1, dtype=torch.long)
    if top_p is not None:  # a token is in it if the ones before it do not make up top_p
        last = torch.minimum(last, (up_to < top_p).sum(-1))
    whole = up_to.gather(1, last[:, None])
    found = torch.searchsorted(up_to, chances.double()[:, None] * whole, right=True)[:, 0]
    return torch.minimum(found, last)


def _plain(model: Any, input_ids: Tensor, model_kwargs: _Kwargs) -> bool:
    """Whether the model's only state is a cache of keys and values, and its inputs are rows."""
    cache: Any = model_kwargs.get("past_key_values")
    if type(cache) is not DynamicCache or cache.get_seq_length() or model.config.is_encoder_decoder:
        return False
    shape = tuple(input_ids.shape)
    tensors = {name: v for name, v in model_kwargs.items() if isinstance(v, Tensor)}
    return (
        bool(model_kwargs.get("use_cache"))
        and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
        and all(name in _OF_ROWS and tuple(v.shape) == shape for name, v in tensors.items())
    )


def _prefill(
    model: Any, input_ids: Tensor, model_kwargs: _Kwargs, room: int
) -> tuple[Tensor, _Kwargs]:
    """Run each different prompt once; return the logits after every row's, and what it left."""
    mask = model_kwargs.get("attention_mask")
    rows = input_ids if mask is None else torch.cat([input_ids, mask], 1)
    _, owner, counts = torch.unique_consecutive(
        rows, dim=0, return_inverse=True, return_counts=True
    )
    firsts = counts.cumsum(0) - counts
    kwargs = {
        name: v[firsts] if name in _OF_ROWS and v is not None else v
        for name, v in model_kwargs.items()
    }
    inputs = model.prepare_inputs_for_generation(
        input_ids[firsts], is_first_iteration=True, **kwargs
    )
    if inputs.get("logits_to_keep") == 1:
        # A slice would be multiplied by a copy of the head for each row, what is taken is not.
        inputs["logits_to_keep"] = torch.tensor([-1], device=input_ids.device)
    outputs = model(**inputs, return_dict=True)
    kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
    _select(kwargs, owner)
    cache = kwargs["past_key_values"]
    cache.layers = [_with_room(layer, room) for layer in cache.layers]
    return outputs.logits[:, -1].float()[owner], kwargs


def _next(model: Any, ids: Tensor, model_kwargs: _Kwargs) -> Tensor:
    """Return the logits after each row's last token, shape (rows, vocabulary)."""
    inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    model_kwargs |= model._update_model_kwargs_for_generation(outputs, model_kwargs)
    logits: Tensor = outputs.logits[:, -1].float()
    return logits


def _select(model_kwargs: _Kwargs, rows: Tensor) -> None:
    for name in _OF_ROWS:
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name][rows]
    model_kwargs["past_key_values"].batch_select_indices(rows)


class _Roomy(DynamicLayer):
    """Keys and values of one layer, with room for those to come.

    Args:
        layer: What is there.
        room: How many tokens are to come.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._store(layer.keys, layer.values, room)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Add keys and values, shape (rows, heads, tokens, width); return all there are."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._room[0].shape[-2]:
            self._store(self.keys, self.values, key_states.shape[-2])
        for whole, new in zip(self._room, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        room = self._room[0].shape[-2] - self.keys.shape[-2]
        self._store(self.keys[indices], self.values[indices], room)

    def _store(self, keys: Tensor, values: Tensor, room: int) -> None:
        length = keys.shape[-2]
        self._room = tuple(
            torch.cat([its, its.new_empty(*its.shape[:2], room, its.shape[3])], dim=2)
            for its in (keys, values)
        )
        self.keys, self.values = (whole[:, :, :length] for whole in self._room)


def _with_room(layer: Any, room: int) -> Any:
    plain = type(layer) is DynamicLayer and layer.is_initialized
    return _Roomy(layer, room) if plain else layer
