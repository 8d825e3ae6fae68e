"""Fresh LoRA adapters of several preference models on one base, and their files."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS
from morlaif_hub.bank.classifier import score_head
from morlaif_hub.bank.trunk import layer_list
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.preference_models.settings import GradientSettings

Array = NDArray[np.float64]


def slot_of(principle: str) -> str:
    """Return the name of a principle's adapter in a model.

    PyTorch refuses some names, such as `values`; none of those begins like these.
    """
    return f"pm-{principle}"


def lora_config(base: nn.Module, settings: GradientSettings) -> LoraConfig:
    """Return PEFT's configuration of a preference model's adapter on a classifier."""
    layers = layer_list(base)
    chosen = None
    if layers is not None and settings.layers != "all":
        chosen = list(settings.adapted(len(layers)))
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        layers_to_transform=chosen,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )


def new_adapters(
    base: Any, heads: Mapping[str, Array], settings: GradientSettings, *, seed: int
) -> PeftModel:
    """Return a base with one fresh adapter per principle, whose scores are those of fitted heads.

    Every adapter starts from the numbers that it would start from without the others.

    Args:
        base: A sequence classifier with one output.
        heads: By principle, shape (width,); at least one.
        settings: Which layers, rank and scale.
        seed: Of the adapters; the global random state is left alone.

    Raises:
        OptionError: If there are no heads.
    """
    if not heads:
        raise OptionError("there are no heads to make adapters for; give at least one")
    model: Any = None
    for principle, head in heads.items():
        slot, config = slot_of(principle), lora_config(base, settings)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if model is None:
                model = get_peft_model(base, config, adapter_name=slot)
            else:
                model.add_adapter(slot, config)
        set_head(model, principle, head)
    return model


def set_head(model: Any, principle: str, head: Array) -> None:
    """Put a fitted head in the place of a model's, as float32.

    Args:
        model: From `new_adapters`, or a classifier that is itself the preference model.
        principle: Whose adapter.
        head: Shape (width,).
    """
    start = f".modules_to_save.{slot_of(principle)}."
    found = [p for n, p in model.named_parameters() if start in n and n.endswith("weight")]
    (weight,) = found or [score_head(model).weight]
    weight.data = torch.tensor(head, dtype=torch.float32, device=weight.device)[None]


def save_new_adapter(model: Any, principle: str, folder: Path, base: BaseIdentity) -> None:
    """Write a principle's adapter as PEFT does, naming its base by repo id and commit.

    Args:
        model: From `new_adapters`.
        principle: Whose adapter.
        folder: Gets its configuration and weights.
        base: What it is an adapter of; never a path of this machine.
    """
    slot = slot_of(principle)
    config = copy.copy(model.peft_config[slot])
    config.base_model_name_or_path, config.revision = base.repo_id, base.revision
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    weights = get_peft_model_state_dict(model, adapter_name=slot, save_embedding_layers=False)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
