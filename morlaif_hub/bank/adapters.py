"""Checking a preference model's files before anything is loaded from them.

PEFT alone is too forgiving for files from strangers: it falls back to pickles, fills a missing
score head with random numbers, and only warns when layers are missing. Everything here is read
from JSON and from the header of a safetensors file; no weight is touched.

Source:
    https://huggingface.co/docs/safetensors (the header), and PEFT's `load_peft_weights`, whose
    fall-backs are what these checks close.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from morlaif_hub.bank.adapter_config import (
    check_adapter_config,
    check_ranks,
    read_adapter_config,
)
from morlaif_hub.errors import ArtifactError, BaseMismatchError, HeadError
from morlaif_hub.hub.artifact import POINTER_SAID, is_pointer
from morlaif_hub.hub.manifest import BaseIdentity

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter.

    Attributes:
        folder: Where it is.
        config: Its PEFT configuration.
        shapes: Those of its tensors, by name.
        where: The repo or folder, for errors.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    where: str


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
    config = read_adapter_config(folder, where)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        others = sorted(p.name for p in folder.glob("*.bin"))
        found = f"; {', '.join(others)} is a pickle and is never loaded" if others else ""
        raise ArtifactError(f"{where}: no {ADAPTER_WEIGHTS}{found}")
    check_adapter_config(config, where, task=task)
    shapes = _read_shapes(weights, where)
    inner = [shape[0] for key, shape in shapes.items() if "lora_A" in key and shape]
    inner += [shape[-1] for key, shape in shapes.items() if "lora_embedding_B" in key and shape]
    check_ranks(config, max(inner, default=0), where)
    if task == "SEQ_CLS":
        _check_head(shapes, where)
    return AdapterFiles(folder, config, shapes, where)


def put_on(model: Any, slot: str, files: AdapterFiles, *, autocast: bool = False) -> Any:
    """Return a model with a checked adapter on it, every tensor of it and nothing else.

    Args:
        model: The adapter's base, or a PEFT model of it with other adapters.
        slot: What the adapter is called in the model.
        files: The adapter.
        autocast: Whether half precision becomes float32.

    Raises:
        BaseMismatchError: If its tensors are not those that this model takes.
        ArtifactError: If a value of them is not a finite number.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where PEFT only warns, `check_fits` refuses
            if isinstance(model, PeftModel):
                model.load_adapter(files.folder, slot, autocast_adapter_dtype=autocast)
            else:
                model = PeftModel.from_pretrained(
                    model, files.folder, slot, autocast_adapter_dtype=autocast
                )
            check_fits(model, slot, files)
    except ArtifactError:
        raise
    except Exception as error:  # a stranger's configuration can make PEFT fail in any way
        missing = "it has no tensor " if isinstance(error, KeyError) else ""
        raise BaseMismatchError(
            f"{files.where}: {ADAPTER_WEIGHTS} does not fit its base: "
            f"{missing}{shorten(str(error), 300)}"
        ) from error
    return model


def check_fits(model: Any, slot: str, files: AdapterFiles) -> None:
    """Check that a loaded adapter took every tensor of its file, and nothing but them.

    PEFT leaves what a file lacks at random numbers and drops what has no place in the model.

    Args:
        model: A PEFT model that has the adapter.
        slot: The adapter's name in the model.
        files: What it was loaded from.

    Raises:
        BaseMismatchError: If a tensor is on one side only, or of another shape.
        ArtifactError: If a value is not a finite number.
    """
    # Whether whole embeddings are kept as well is not left to PEFT, which would ask the Hub for the
    # newest configuration of the base to find out.
    differences = []
    for embeddings in (False, True):
        taken = get_peft_model_state_dict(
            model, adapter_name=slot, save_embedding_layers=embeddings
        )
        expected = {(key, tuple(tensor.shape)) for key, tensor in taken.items()}
        differences.append(expected ^ set(files.shapes.items()))
    for key, tensor in taken.items():
        if key in files.shapes and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"{files.where}: {ADAPTER_WEIGHTS}: {key} has NaN or infinite values"
            )
    fewest = min(differences, key=len)
    if not fewest:
        return
    name, _ = min(fewest)
    raise BaseMismatchError(
        f"{files.where}: {ADAPTER_WEIGHTS} does not fit its base: tensor {name} is on one side "
        "only, or of another shape"
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


def _read_shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    if is_pointer(path):
        raise ArtifactError(f"{where}: {path.name}: {POINTER_SAID}")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()  # a method of the file, which is no dict
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{where}: {path.name} is not a safetensors file: {error}") from error


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
        raise HeadError(
            f"{where}: {ADAPTER_WEIGHTS}: more than one score head: {', '.join(sorted(heads))}"
        )
    ((key, shape),) = heads.items()
    if shape[:1] != (1,):
        outputs = shape[0] if shape else 0
        raise HeadError(
            f"{where}: {ADAPTER_WEIGHTS}: the score head {key} has {outputs} outputs, 1 is wanted"
        )
