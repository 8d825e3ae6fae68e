"""Preference models that share one base in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS, AdapterFiles, check_adapter
from morlaif_hub.bank.classifier import Loaded, load_with_gaps
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.in_place import HEADS
from morlaif_hub.bank.members import Member
from morlaif_hub.errors import ArtifactError, HeadError
from morlaif_hub.hub.manifest import MANIFEST_NAME, InputFormat
from morlaif_hub.models.language_model import (
    Dtype,
    ModelFolder,
    check_model_files,
    load_tokenizer,
)


@dataclass(frozen=True)
class Group:
    """Members that share one base in memory, their columns and how they read text."""

    engine: Engine
    tokenizer: Any
    columns: tuple[int, ...]
    formats: tuple[InputFormat, ...]


def load_group(
    members: Sequence[Member],
    columns: Sequence[int],
    *,
    base: ModelFolder | None,
    dtype: Dtype,
    device: str,
) -> Group:
    """Return preference models, ready to score.

    Args:
        members: Adapters of one base; or one full model.
        columns: Of the bank, one for each.
        base: None for a full model.
        dtype: Of the weights.
        device: Where to score.

    Raises:
        ArtifactError: If a file is unsafe or damaged, or a weight is nowhere.
        BaseMismatchError: If an adapter does not fit the base.
        HeadError: If there is not exactly one score head with one output.
    """
    where = members[0].source
    adapters: dict[str, AdapterFiles] = {}
    manifest = members[0].manifest
    if manifest is not None and manifest.form == "probe":
        raise ArtifactError(f"{where}: {MANIFEST_NAME}: a probe cannot be loaded by this version")
    if base is None:
        check_model_files(members[0].path, where)
        path = members[0].path
    else:
        adapters = {m.objective: check_adapter(m.path, m.source) for m in members}
        path = base.path
    try:
        tokenizer = load_tokenizer(path)
        pad = tokenizer.pad_token_id
        loaded = load_with_gaps(path, dtype=getattr(torch, dtype), pad_token_id=pad)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
    except Exception as error:  # a stranger's files can make transformers fail in any way
        raise ArtifactError(f"{where}: the model in {path} cannot be loaded: {error}") from error
    _check_whole(loaded, adapters, where)
    engine = Engine(loaded.model.to(device), pad_token_id=pad, adapters=adapters)
    formats = tuple(_input_format(member, loaded.model) for member in members)
    return Group(engine, tokenizer, tuple(columns), formats)


def _check_whole(loaded: Loaded, adapters: dict[str, AdapterFiles], where: str) -> None:
    """Check that no weight is left to chance: what a folder lacks, each adapter has to bring."""
    for name, shape in loaded.gaps.items():
        for files in adapters.values():
            if f"base_model.model.{name}" not in files.shapes:
                raise ArtifactError(
                    f"{files.where}: neither its base nor its {ADAPTER_WEIGHTS} has {name}, so its "
                    "scores would be random"
                )
        if adapters:
            continue
        if name.split(".")[-2:-1] and name.split(".")[-2] in HEADS:
            outputs = f"has {shape[0]} outputs, 1 is wanted" if shape else "is not there"
            raise HeadError(f"{where}: the score head {name} in its safetensors {outputs}")
        raise ArtifactError(
            f"{where}: its safetensors have no {name} of the shape that config.json gives it"
        )


def _input_format(member: Member, model: Any) -> InputFormat:
    """Return how a member reads text; never more of it than its base has room for."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if member.manifest is None:
        return InputFormat(kind="text", append_eos=False, max_length=context or 2048)
    wanted = member.manifest.input_format
    if context is None or wanted.max_length <= context:
        return wanted
    return replace(wanted, max_length=context)
