"""Preference models with random numbers in them, for what depends on their shapes alone."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from morlaif_hub.bank.adapters import AdapterFiles, check_adapter
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.engine import Engine, EngineSettings
from morlaif_hub.models.language_model import load_tokenizer
from morlaif_hub.preference_models.new_adapters import lora_config
from morlaif_hub.preference_models.settings import GradientSettings

# Of the second matrix of a LoRA and of a head: an adapter then changes what its layers give by some
# per cent, as a trained one does, and scores are about as large as those of trained ones.
SPREAD_OF_B = 0.05
SPREAD_OF_HEAD = 0.04


def save_random_adapters(
    folder: Path, base: Path, *, count: int, layers: str, seed: int
) -> dict[str, AdapterFiles]:
    """Write adapters as `train-pm` makes them, but random, and return them by name, checked.

    Args:
        folder: Where their folders go.
        base: The folder of their base.
        count: How many.
        layers: As `GradientSettings` takes them.
        seed: Of their weights.
    """
    model = base_classifier(base, dtype=torch.float32)
    adapted = get_peft_model(model, lora_config(model, GradientSettings(layers=layers)))
    generator = torch.Generator().manual_seed(seed)
    names = [f"pm{i:02}" for i in range(count)]
    for name in names:
        _draw(adapted, generator)
        adapted.save_pretrained(folder / name, save_embedding_layers=False)
    return {name: check_adapter(folder / name, name) for name in names}


def base_classifier(base: Path, *, dtype: torch.dtype) -> Any:
    """Return a base as a classifier with one output, in evaluation mode."""
    return load_classifier(base, dtype=dtype, pad_token_id=load_tokenizer(base).pad_token_id)


def bank_engine(
    base: Path,
    adapters: dict[str, AdapterFiles],
    *,
    dtype: torch.dtype = torch.float32,
    settings: EngineSettings | None = None,
) -> Engine:
    """Return what a bank scores with.

    Args:
        base: The folder of the base.
        adapters: From `save_random_adapters`.
        dtype: Of the base's weights.
        settings: The engine's; None for its own choice.
    """
    model = base_classifier(base, dtype=dtype)
    pad = model.config.get_text_config().pad_token_id
    return Engine(model, pad_token_id=pad, adapters=adapters, settings=settings)


def with_adapters(model: Any, adapters: dict[str, AdapterFiles]) -> PeftModel:
    """Return a base with all adapters on it, by PEFT alone."""
    (name, first), *others = adapters.items()
    made = PeftModel.from_pretrained(model, first.folder, name, autocast_adapter_dtype=False)
    for name, files in others:
        made.load_adapter(files.folder, name, autocast_adapter_dtype=False)
    return made.requires_grad_(False).eval()


def merged(base: Path, files: AdapterFiles) -> Any:
    """Return a model of its own for one adapter, which is added to its weights."""
    adapted = with_adapters(base_classifier(base, dtype=torch.float32), {files.where: files})
    return adapted.merge_and_unload()


@torch.no_grad()
def _draw(model: PeftModel, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        elif "lora_B" in name:
            parameter.normal_(0.0, SPREAD_OF_B, generator=generator)
        elif ".modules_to_save." in name:
            parameter.normal_(0.0, SPREAD_OF_HEAD, generator=generator)
