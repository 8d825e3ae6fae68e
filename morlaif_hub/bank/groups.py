"""Preference models that share one base in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from morlaif_hub.bank.adapters import ADAPTER_WEIGHTS, AdapterFiles, check_adapter
from morlaif_hub.bank.classifier import Loaded, load_base_with_gaps, load_with_gaps
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.in_place import HEADS
from morlaif_hub.bank.members import Member
from morlaif_hub.bank.pooling import is_bare
from morlaif_hub.bank.probes import ProbeFiles, check_probe
from morlaif_hub.errors import ArtifactError, HeadError
from morlaif_hub.hub.manifest import InputFormat
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
        members: Adapters and probes of one base; or one full model.
        columns: Of the bank, one for each.
        base: None for a full model.
        dtype: Of the weights.
        device: Where to score.

    Raises:
        ArtifactError: If a file is unsafe or damaged, or a weight is nowhere.
        BaseMismatchError: If an adapter or a probe does not fit the base.
        HeadError: If there is not exactly one score head with one output.
    """
    where = members[0].source
    adapters, probes = _heads_of(members) if base is not None else ({}, {})
    if base is None:
        check_model_files(members[0].path, where)
    path = members[0].path if base is None else base.path
    alone = bool(probes) and not adapters
    try:
        tokenizer = load_tokenizer(path)
        pad = tokenizer.pad_token_id
        load = load_base_with_gaps if alone else load_with_gaps
        loaded = load(path, dtype=getattr(torch, dtype), pad_token_id=pad)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
    except Exception as error:  # a stranger's files can make transformers fail in any way
        raise ArtifactError(f"{where}: the model in {path} cannot be loaded: {error}") from error
    if not alone:
        _check_whole(loaded, adapters, where)
    _check_read(loaded, probes)
    engine = Engine(loaded.model.to(device), pad_token_id=pad, adapters=adapters, probes=probes)
    # The engine's columns are those of the adapters, then those of the probes.
    order = sorted(range(len(members)), key=lambda i: members[i].objective in probes)
    formats = tuple(_input_format(members[i], loaded.model) for i in order)
    return Group(engine, tokenizer, tuple(columns[i] for i in order), formats)


def _heads_of(
    members: Sequence[Member],
) -> tuple[dict[str, AdapterFiles], dict[str, ProbeFiles]]:
    """Return what members bring to their base, checked, by objective: adapters, and probes."""
    adapters: dict[str, AdapterFiles] = {}
    probes: dict[str, ProbeFiles] = {}
    for member in members:
        record = member.manifest.probe if member.manifest else None
        if record is None:
            adapters[member.objective] = check_adapter(member.path, member.source)
        else:
            probes[member.objective] = check_probe(member.path, member.source, record)
    return adapters, probes


def _check_read(loaded: Loaded, probes: dict[str, ProbeFiles]) -> None:
    """Check that no weight is left to chance of those that make the states which probes read."""
    prefix = "" if is_bare(loaded.model) else f"{loaded.model.base_model_prefix}."
    read = [n for n in loaded.gaps if n.startswith(prefix) and ".pooler." not in f".{n}"]
    if read and probes:
        where = next(iter(probes.values())).where
        raise ArtifactError(
            f"{where}: its base has no {read[0]} of the shape that config.json gives it, so "
            "its scores would be random"
        )


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
