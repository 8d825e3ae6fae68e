"""Sampling responses from a language model: batched, seeded, and different where wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from morlaif_hub.comparisons import Message
from morlaif_hub.errors import OptionError
from morlaif_hub.models.decoding import decode
from morlaif_hub.models.formats import encode, prompt_text
from morlaif_hub.models.language_model import LanguageModel

ROUNDS = 4  # of sampling again, for prompts whose samples were equal


@dataclass(frozen=True)
class Response:
    """A sampled response.

    Attributes:
        text: Without the end of the turn, and without white space around it.
        finished: Whether it ended by itself rather than at the token limit.
        ids: The tokens that were sampled, with the end of the turn if it was; empty for what was
            read from a file. Responses that say the same are equal, however it was tokenised.
    """

    text: str
    finished: bool
    ids: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are sampled.

    Attributes:
        responses: Responses per prompt.
        max_new_tokens: Limit of a response.
        temperature: Of the softmax; 0 means greedy, which gives one different response per prompt.
        top_p: Nucleus: the smallest set of tokens with this probability is sampled from.
        stop: Strings that end a response and are cut off.
        seed: Makes the samples repeatable on the same machine.
        batch_size: Rows generated at once.
        distinct: Whether a prompt's responses have to differ and to say something. Means over
            responses estimate those of the policy only where all are kept as they come.
    """

    responses: int = 2
    max_new_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 32
    distinct: bool = True

    def __post_init__(self) -> None:
        for name in ("responses", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0:
            raise OptionError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.distinct and self.temperature == 0 and self.responses > 1:
            raise OptionError(
                f"temperature 0 gives one different response per prompt, got "
                f"responses={self.responses}; raise the temperature"
            )


def sample_responses(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[Message]],
    settings: SamplingSettings,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[list[Response]]:
    """Return responses to every prompt.

    Where they have to be distinct, equal and empty samples are drawn again a few times; a prompt
    that still has fewer than asked for gets what there is. Else each sample is drawn once, and
    the responses are independent draws from the policy.

    Args:
        language_model: The policy.
        prompts: Message lists.
        settings: How to sample.
        progress: Told how many responses were just sampled.

    Returns:
        For each prompt `settings.responses` responses, or at most that many with different,
        non-empty texts.
    """
    tokenizer = language_model.tokenizer
    encoded = [encode(tokenizer, prompt_text(tokenizer, prompt)) for prompt in prompts]
    found: list[list[Response]] = [[] for _ in prompts]
    rows = [i for i in _by_length(encoded) for _ in range(settings.responses)]
    for round_number in range(ROUNDS):
        batches = max(1, -(-len(rows) // settings.batch_size))
        size = max(1, -(-len(rows) // batches))  # equal ones: the work of a step hardly grows
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            seed = hash((settings.seed, round_number, start)) % 2**31
            chosen = [encoded[i] for i in batch]
            sampled = sample_rows(language_model.model, tokenizer, chosen, settings, seed=seed)
            for i, response in zip(batch, sampled, strict=True):
                if not settings.distinct or _is_new(response, found[i]):
                    found[i].append(response)
            if progress and round_number == 0:
                progress(len(batch))
        rows = [i for i, had in enumerate(found) for _ in range(settings.responses - len(had))]
        if not rows or settings.temperature == 0:
            break
    return found


def _is_new(response: Response, had: Sequence[Response]) -> bool:
    return bool(response.text) and all(response.text != other.text for other in had)


def _by_length(encoded: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(encoded)), key=lambda i: len(encoded[i]))


@torch.inference_mode()
def sample_rows(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    settings: SamplingSettings,
    *,
    seed: int = 0,
    chances: torch.Tensor | None = None,
) -> list[Response]:
    """Return one response to each row of token ids, all sampled at once.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: At least one; equal ones next to each other are computed once.
        settings: How to sample; how many and how many at once is not looked at.
        seed: Of PyTorch's generator, which is put back afterwards.
        chances: Random numbers to draw by, uniform in [0, 1), shape (rows, max_new_tokens). With
            them rows do not depend on each other, and nothing but `settings` changes what is drawn
            from, no penalty or bias of the model's own configuration.
    """
    ids, mask = _left_padded(prompts, tokenizer.pad_token_id)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": 0,
        }
    if settings.stop:
        stop = StopStringCriteria(tokenizer, list(settings.stop))
        sampling["stopping_criteria"] = StoppingCriteriaList([stop])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            custom_generate=decode if chances is None else partial(_unaltered, chances=chances),
            **sampling,
        )
    ends = _end_tokens(model, tokenizer)
    new = output[:, ids.shape[1] :].tolist()
    return [_response(tokenizer, row, ends, settings.stop) for row in new]


def _unaltered(
    model: Any, input_ids: torch.Tensor, logits_processor: Any, **others: Any
) -> torch.Tensor:
    wanted = [
        p for p in logits_processor if isinstance(p, TemperatureLogitsWarper | TopPLogitsWarper)
    ]
    return decode(model, input_ids, LogitsProcessorList(wanted), **others)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _left_padded(rows: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _response(tokenizer: Any, row: list[int], ends: set[int], stop: Sequence[str]) -> Response:
    length = next((i for i, token in enumerate(row) if token in ends), len(row))
    finished = length < len(row)
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    ids = row[: length + 1]
    for mark in stop:
        if mark in text:
            text, finished = text.split(mark, 1)[0], True
            while ids[-1] == tokenizer.pad_token_id:  # what follows a stop string is padding
                ids.pop()
    return Response(text.strip(), finished, tuple(ids))
