"""Sequence classifiers and bare bases: loaded from local folders, with what these lack."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from morlaif_hub.errors import TrainingError


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
    return _load(
        partial(AutoModelForSequenceClassification.from_pretrained, folder, num_labels=1),
        dtype=dtype,
        pad_token_id=pad_token_id,
        attention=attention,
    )


def load_base(
    folder: Path, *, dtype: torch.dtype, pad_token_id: int, attention: str | None = None
) -> Any:
    """Return a folder's model without any head, as probes read it, in evaluation mode.

    Args:
        folder: A local model in safetensors.
        dtype: Of its weights.
        pad_token_id: What its inputs are padded with.
        attention: A name of an attention implementation; None for transformers' choice.
    """
    return load_base_with_gaps(
        folder, dtype=dtype, pad_token_id=pad_token_id, attention=attention
    ).model


def load_base_with_gaps(
    folder: Path, *, dtype: torch.dtype, pad_token_id: int, attention: str | None = None
) -> Loaded:
    """Return what `load_base` does, and which of its weights the folder did not have."""
    return _load(
        partial(AutoModel.from_pretrained, folder),
        dtype=dtype,
        pad_token_id=pad_token_id,
        attention=attention,
    )


def _load(
    load: Callable[..., Any], *, dtype: torch.dtype, pad_token_id: int, attention: str | None
) -> Loaded:
    with quiet_loading():
        model, found = load(
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
