"""Checking a preference model's files before anything is loaded from them.

PEFT alone is too forgiving for files from strangers: it falls back to pickles, fills a missing
score head with random numbers, and only warns when layers are missing. Everything here is read
from JSON and from the header of a safetensors file; no weight is touched.

Source:
    https://huggingface.co/docs/safetensors (the header), and PEFT's `load_peft_weights`, whose
    fall-backs are what these checks close.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import get_peft_model_state_dict
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from safetensors import SafetensorError, safe_open

from morlaif_hub.errors import ArtifactError, BaseMismatchError, HeadError
from morlaif_hub.hub.manifest import BaseIdentity

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter: its folder, its PEFT configuration and the shapes of its tensors."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def check_adapter(
    folder: Path, where: str, *, task: Literal["SEQ_CLS", "CAUSAL_LM"] = "SEQ_CLS"
) -> AdapterFiles:
    """Return a LoRA adapter's files after checking that they are safe and complete.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        where: The repo or folder, for errors.
        task: `SEQ_CLS` for a preference model, `CAUSAL_LM` for a policy, which has no head.

    Raises:
        ArtifactError: If the weights are not safetensors, or the configuration is not that of a
            plain LoRA adapter for the task.
        HeadError: If a preference model has not exactly one score head with one output.
    """
    config = _read_config(folder / ADAPTER_CONFIG, where)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        others = sorted(p.name for p in folder.glob("*.bin"))
        found = f"; {', '.join(others)} is a pickle and is never loaded" if others else ""
        raise ArtifactError(f"{where}: no {ADAPTER_WEIGHTS}{found}")
    _check_config(config, where, task)
    shapes = _read_shapes(weights, where)
    if task == "SEQ_CLS":
        _check_head(shapes, where)
    return AdapterFiles(folder, config, shapes)


def check_fits(model: Any, slot: str, files: AdapterFiles, where: str) -> None:
    """Check that a loaded adapter took every tensor of its file, and nothing but them.

    PEFT leaves what a file lacks at random numbers and drops what has no place in the model.

    Args:
        model: A PEFT model that has the adapter.
        slot: The adapter's name in the model.
        files: What it was loaded from.
        where: The adapter's objective or source, for errors.

    Raises:
        BaseMismatchError: If a tensor is on one side only, or of another shape.
    """
    # Not left to PEFT, which asks the Hub for the newest configuration of the base to find out.
    embeddings = any(
        f".{name}." in key and "lora_" not in key
        for key in files.shapes
        for name in EMBEDDING_LAYER_NAMES
    )
    taken = get_peft_model_state_dict(model, adapter_name=slot, save_embedding_layers=embeddings)
    expected = {key: tuple(tensor.shape) for key, tensor in taken.items()}
    if different := sorted(expected.items() ^ files.shapes.items()):
        raise BaseMismatchError(
            f"{where}: the adapter in {files.folder} does not fit its base: tensor "
            f"{different[0][0]} is on one side only, or of another shape"
        )


def save_adapter(model: Any, folder: Path, base: BaseIdentity) -> None:
    """Write a PEFT model's adapter, naming its base by repo id and commit, never by a path here."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.repo_id, base.revision
    model.save_pretrained(folder, save_embedding_layers=False)


def check_base(
    declared: BaseIdentity, offered: BaseIdentity, where: str, *, name: str | None = None
) -> None:
    """Check that an adapter is put on the base that it was trained on.

    Args:
        declared: What its manifest says.
        offered: What was found.
        where: The adapter's source, for errors.
        name: What the user called the offered base, for errors.

    Raises:
        BaseMismatchError: If the weights differ; the message names both.
    """
    if declared.weights_sha256 != offered.weights_sha256:
        raise BaseMismatchError(
            f"{where}: made for the base {describe_base(declared)}, but put on "
            f"{describe_base(offered, name)}; load it with its own base"
        )


def describe_base(base: BaseIdentity, name: str | None = None) -> str:
    """Return a base's repository, else what the user called it, and the start of its hash."""
    name = (
        base.repo_id
        or name
        or ("the embedded model" if base.source.startswith("gguf") else "a folder")
    )
    return f"{name} (weights {base.weights_sha256[:12]})"


def _read_config(path: Path, where: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{where}: no {path.name}, so it is not a LoRA adapter") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{where}: {path.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{where}: {path.name} must be a JSON object")
    return config


def _read_shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()  # a method of the file, which is no dict
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{where}: {path.name} is not a safetensors file: {error}") from error


def _check_config(config: dict[str, Any], where: str, task: str) -> None:
    wanted = {"peft_type": "LORA", "task_type": task}
    for key, value in wanted.items():
        if config.get(key) != value:
            raise ArtifactError(
                f"{where}: {ADAPTER_CONFIG} has {key} {config.get(key)!r}, but {value!r} is wanted"
            )
    for key in ("auto_mapping", "megatron_config"):
        if config.get(key):
            raise ArtifactError(
                f"{where}: {ADAPTER_CONFIG} asks for code to be imported ({key}); refused"
            )


def _check_head(shapes: dict[str, tuple[int, ...]], where: str) -> None:
    heads = {
        key: shape
        for key, shape in shapes.items()
        if key.rsplit(".", 2)[-2:] in (["score", "weight"], ["classifier", "weight"])
    }
    if not heads:
        raise HeadError(
            f"{where}: {ADAPTER_WEIGHTS} has no score head, so its scores would be random; save "
            "it with task_type SEQ_CLS, which keeps the head"
        )
    if len(heads) > 1:
        raise HeadError(f"{where}: more than one score head: {', '.join(sorted(heads))}")
    ((key, shape),) = heads.items()
    if shape[0] != 1:
        raise HeadError(f"{where}: the score head {key} has {shape[0]} outputs, 1 is wanted")
