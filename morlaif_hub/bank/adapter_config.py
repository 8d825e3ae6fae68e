"""What the configuration of an adapter may ask for: a plain LoRA, which leaves its base as it is.

PEFT does whatever a configuration says, as far as importing libraries by name and changing the
weights of a base that others share. Values that PEFT would not survive are refused here as well.

Source:
    https://huggingface.co/docs/peft/package_reference/lora
"""

import json
from pathlib import Path
from typing import Any

from morlaif_hub.errors import ArtifactError

ADAPTER_CONFIG = "adapter_config.json"
LARGEST_CONFIG = 1 << 20
"""Bytes; those of real adapters have some 1,000."""

_CODE = ("auto_mapping", "megatron_config")
_PLAIN: dict[str, type | tuple[type, ...]] = {
    "alpha_pattern": dict,
    "base_model_name_or_path": str,
    "corda_config": dict,
    "ensure_weight_tying": bool,
    "eva_config": dict,
    "exclude_modules": (list, str),
    "fan_in_fan_out": bool,
    "inference_mode": bool,
    "layers_pattern": (list, str),
    "layers_to_transform": (list, int),
    "loftq_config": dict,
    "lora_alpha": (int, float),
    "lora_bias": bool,
    "lora_dropout": (int, float),
    "lora_ga_config": dict,
    "megatron_core": str,  # where the code would be imported from, if there were any
    "modules_to_save": list,
    "peft_type": str,
    "peft_version": str,
    "qalora_group_size": int,
    "r": int,
    "rank_pattern": dict,
    "revision": str,
    "target_modules": (list, str),
    "task_type": str,
    "use_dora": bool,
    "use_rslora": bool,
}
# Other ways to begin replace the weights of the base by what is left without the adapter.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal")


def read_adapter_config(folder: Path, where: str) -> dict[str, Any]:
    """Return what `adapter_config.json` holds, unchecked.

    Raises:
        ArtifactError: If it is not a JSON object of a sensible size.
    """
    path = folder / ADAPTER_CONFIG
    try:
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            raise ArtifactError(f"{where}: {path.name} has {size} bytes, over {LARGEST_CONFIG}")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{where}: no {path.name}, so it is not a LoRA adapter") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: {path.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{where}: {path.name} must be a JSON object")
    return config


def check_adapter_config(config: dict[str, Any], where: str, *, task: str) -> None:
    """Check that a configuration is that of a plain LoRA adapter for a task.

    Args:
        config: As it was read.
        where: The repo or folder, for errors.
        task: `SEQ_CLS` or `CAUSAL_LM`.

    Raises:
        ArtifactError: If it asks for code, for something else than a plain LoRA, for a change of
            its base, or has a value of the wrong type; the message names the key.
    """
    for key, value in {"peft_type": "LORA", "task_type": task}.items():
        if config.get(key) != value:
            raise _refused(where, f"has {key} {config.get(key)!r}, but {value!r} is wanted")
    for key in _CODE:
        if config.get(key):
            raise _refused(where, f"asks for code to be imported ({key}); refused")
    if config.get("bias") not in (None, "none"):
        raise _refused(where, f"has bias {config['bias']!r}, which changes the base for others")
    if config.get("init_lora_weights") not in _BEGINNINGS:
        raise _refused(
            where,
            f"has init_lora_weights {config['init_lora_weights']!r}, which changes the base for "
            "others; ask its owner to convert it to a plain LoRA, as PEFT's documentation says",
        )
    for key, value in config.items():
        _check_plain(key, value, where)


def check_ranks(config: dict[str, Any], largest: int, where: str) -> None:
    """Check that no rank is beyond that of the weights: PEFT takes the memory first.

    Raises:
        ArtifactError: If one is.
    """
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    for rank in ranks:
        if type(rank) is not int or not 0 < rank <= largest:
            raise _refused(where, f"has a rank of {rank!r}, but its weights have {largest}")


def _check_plain(key: str, value: Any, where: str) -> None:
    if value is None or key in ("bias", "init_lora_weights"):
        return
    if key not in _PLAIN:
        if value:  # what is empty or false is not asked for
            raise _refused(where, f"has {key}, which a plain LoRA has not; refused")
    elif not isinstance(value, _PLAIN[key]):
        raise _refused(where, f"has {key} {value!r}, which is of the wrong type")


def _refused(where: str, what: str) -> ArtifactError:
    return ArtifactError(f"{where}: {ADAPTER_CONFIG} {what}")
