"""Prompts as a policy reads them: which fit the model, and plain text where it has no template."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import AutoConfig

from morlaif_hub.errors import OptionError
from morlaif_hub.models.formats import encode, prompt_text
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.policies.settings import Prompts

_LOG = logging.getLogger("morlaif_hub.policies")

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""What `plain_text` does, as a chat template: it lets trainers read messages as plain text."""


class Fitting(NamedTuple):
    """Prompts that fit a model with a completion, and how many do not.

    Attributes:
        prompts: Those that do.
        left_out: How many do not.
        longest: Tokens of the longest that does.
    """

    prompts: Prompts
    left_out: int
    longest: int


def training_tokenizer(folder: Path) -> Any:
    """Return a model's tokenizer as trainers need it: padding on the left, and with a template.

    A model without a chat template gets the plain one, so it continues prompts as they are; no
    token is put before them, as when it answers.
    """
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


class Limits(NamedTuple):
    """What a model takes; None where its configuration does not say.

    Attributes:
        context: Tokens of a text.
        vocabulary: Different tokens.
    """

    context: int | None
    vocabulary: int | None


def limits(folder: Path) -> Limits:
    """Return what the configuration in a model's folder says."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size"))
    context, vocabulary = (n if isinstance(n, int) and n > 0 else None for n in found)
    return Limits(context, vocabulary)


def fitting(
    tokenizer: Any, prompts: Prompts, *, model: Limits, new_tokens: int, what: str
) -> Fitting:
    """Return the prompts that fit with a completion; the log says how many are left out.

    Args:
        tokenizer: The policy's.
        prompts: Message lists.
        model: What it takes.
        new_tokens: Of a completion, at most.
        what: The prompts are for, in messages.

    Raises:
        OptionError: If none fits, the chat template does not take one, or the tokenizer makes
            tokens that the model does not have.
    """
    room = None if model.context is None else model.context - new_tokens
    encoded = [_encoded(tokenizer, prompt) for prompt in prompts]
    highest = max((max(ids, default=0) for ids in encoded), default=0)
    if model.vocabulary is not None and highest >= model.vocabulary:
        raise OptionError(
            f"the tokenizer makes the token {highest} of a prompt, but the model has "
            f"{model.vocabulary} tokens: they do not belong together"
        )
    lengths = [len(ids) for ids in encoded]
    kept = [i for i, length in enumerate(lengths) if room is None or length <= room]
    if room is not None and prompts and not kept:
        raise OptionError(
            f"none of the {len(prompts)} prompts to {what} fits the model: the shortest has "
            f"{min(lengths)} tokens, and {room} are left beside max_new_tokens; lower it or give "
            "shorter prompts"
        )
    left_out = len(prompts) - len(kept)
    if left_out:
        _LOG.warning(
            "%d of %d prompts to %s are left out: they have more than the %s tokens that the "
            "model takes beside a completion",
            left_out,
            len(prompts),
            what,
            room,
        )
    longest = max((lengths[i] for i in kept), default=0)
    return Fitting([prompts[i] for i in kept], left_out, longest)


def _encoded(tokenizer: Any, prompt: Sequence[Any]) -> list[int]:
    try:
        return encode(tokenizer, prompt_text(tokenizer, prompt))
    except TemplateError as error:
        raise OptionError(
            f"the model's chat template does not take the prompt {prompt[-1]['content'][:80]!r}: "
            f"{error}; give prompts with other roles, or another model"
        ) from error
