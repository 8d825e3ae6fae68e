"""Full preference models: a base with all its weights trained, and their files."""

from pathlib import Path
from typing import Any

import torch

from morlaif_hub.bank.classifier import score_head
from morlaif_hub.preference_models.tokens import Array


def new_full_model(base: Any, head: Array) -> Any:
    """Return a base, now all to be trained, whose scores are those of a fitted head.

    Its weights become float32: in half precision most steps are too small to change a weight.

    Args:
        base: A sequence classifier with one output; from now on it is the preference model.
        head: Shape (width,).

    Raises:
        TrainingError: If the model has no head of a known kind.
    """
    model = base.float().requires_grad_(True)
    layer: Any = score_head(model)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(head, dtype=torch.float32)[None])
        if layer.bias is not None:
            layer.bias.zero_()
    return model


def save_full_model(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write a full preference model as `transformers` reads it, beside its base's tokenizer.

    Unlike an adapter it needs no base to be loaded, so its tokenizer has to come with it.

    Args:
        model: Trained, whole and in this process.
        folder: Gets `config.json`, `model.safetensors` and the tokenizer's files.
        tokenizer: The base's, as the preference model's texts were read with.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
