"""A causal language model with its tokenizer and the identity of its weights."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from morlaif_hub.errors import ArtifactError, ModelNotFoundError, MorlaifHubError
from morlaif_hub.hub.artifact import (
    POINTER_SAID,
    cache_folder,
    is_pointer,
    open_artifact,
    weights_sha256,
)
from morlaif_hub.hub.client import fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, BaseIdentity, BaseManifest, manifest_kind
from morlaif_hub.hub.remote_files import refuse_damaged
from morlaif_hub.models.embedded import EMBEDDED, embedded_model
from morlaif_hub.workspace import write_text

Dtype = Literal["float32", "bfloat16"]
KNOWN_BASES = "bases.json"
LARGEST_CONFIG = 4 << 20  # bytes; those of real models have some 1,000
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class ModelFolder:
    """A model's files on this machine and which weights they are.

    Attributes:
        path: The folder.
        name: What the user called it, for messages and reports.
        base: The identity of its weights.
    """

    path: Path
    name: str
    base: BaseIdentity


def model_folder(spec: str | Path | None = None) -> ModelFolder:
    """Return the folder of a model, downloading it if needed.

    Args:
        spec: None or `embedded` for the embedded model, a local folder (`./` or absolute), or a
            Hub id, with `@revision` to pin one.

    Raises:
        ModelNotFoundError: If there is no model with safetensors weights under that name.
        HubError: If the Hub refuses or cannot be reached.
    """
    if spec is None or str(spec) == EMBEDDED:
        path = embedded_model()
        found = ModelFolder(path, EMBEDDED, base_identity(path))
    else:
        fetched = fetch(spec, allow_patterns=MODEL_FILES)
        # The weights, which may be large, have a hash of their own.
        small = [p.name for p in fetched.path.iterdir() if p.suffix != ".safetensors"]
        refuse_damaged(fetched.path, str(spec), small)
        check_model_files(fetched.path, str(spec))
        try:
            base = base_identity(fetched.path, fetched.repo_id, fetched.revision)
        except ArtifactError:
            refuse_damaged(fetched.path, str(spec))
            raise
        found = ModelFolder(fetched.path, str(spec), base)
    _remember(found)
    return found


def check_model_files(folder: Path, where: str) -> None:
    """Check that a folder holds one model, which runs no code but that of transformers.

    Raises:
        ModelNotFoundError: If it has no `config.json`.
        ArtifactError: If that cannot be read, is of a kind that transformers does not know or asks
            for code, or an adapter is beside the model, which would be loaded with it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(
            f"{where}: no config.json there; a transformers model in safetensors is wanted"
        )
    if (folder / "adapter_config.json").exists():
        raise ArtifactError(
            f"{where}: adapter_config.json beside a whole model, so it is unclear which one is "
            "meant; remove either"
        )
    try:
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            raise ValueError(f"it has {size} bytes, over {LARGEST_CONFIG}")
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ArtifactError(f"{where}: config.json cannot be read: {error}") from error
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = (
            " asks for code of its own (auto_map), which is never run, and"
            if ("auto_map" in config)
            else ""
        )
        raise ArtifactError(
            f"{where}: config.json{code} has model_type {kind!r}, which transformers does not know"
        )
    for weights in folder.glob("*.safetensors"):
        if is_pointer(weights):
            raise ArtifactError(f"{where}: {weights.name}: {POINTER_SAID}")
    for key in KERNELS:
        if "/" in str(config.get(key)):
            raise ArtifactError(f"{where}: config.json asks for code from the Hub ({key}); refused")


def known_base(weights_sha256: str) -> ModelFolder | None:
    """Return a model that was used on this machine before and has exactly these weights."""
    path = _known_bases().get(weights_sha256)
    if path is None or not (Path(path) / "config.json").is_file():
        return None
    try:
        found = model_folder(Path(path))
    except MorlaifHubError:  # whatever became of it, it no longer stands in
        return None
    return found if found.base.weights_sha256 == weights_sha256 else None


def _remember(found: ModelFolder) -> None:
    known = _known_bases()
    if known.get(found.base.weights_sha256) != str(found.path):
        known[found.base.weights_sha256] = str(found.path)
        write_text(cache_folder() / KNOWN_BASES, json.dumps(known, indent=1) + "\n")


def _known_bases() -> dict[str, str]:
    try:
        known = json.loads((cache_folder() / KNOWN_BASES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def base_identity(
    folder: Path, repo_id: str | None = None, revision: str | None = None
) -> BaseIdentity:
    """Return which weights a folder holds: its tensors are hashed, whatever its manifest says.

    Raises:
        ArtifactError: If its manifest declares other weights.
    """
    found = _weights_sha256(folder, _stamps(folder))
    # A policy in full is a model of its own; its manifest names what it was made from.
    if (folder / MANIFEST_NAME).is_file() and manifest_kind(folder) != "policy":
        where = f"{repo_id}@{revision}" if repo_id else str(folder)
        declared = open_artifact(folder, BaseManifest, where=where).base
        if declared.weights_sha256 != found:
            raise ArtifactError(
                f"{where}: {MANIFEST_NAME} declares the weights {declared.weights_sha256[:12]}, "
                f"but the tensors are {found[:12]}"
            )
        return replace(declared, repo_id=repo_id or declared.repo_id, revision=revision)
    source = "local" if repo_id is None else "hub"
    return BaseIdentity(repo_id=repo_id, revision=revision, weights_sha256=found, source=source)


@lru_cache(maxsize=32)
def _weights_sha256(folder: Path, _stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash once in a process what has not changed: a model of seven billion takes seconds."""
    return weights_sha256(folder)


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(folder.glob("*.safetensors*"))
    states = [(path.name, path.stat()) for path in files]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def load_causal_lm(folder: Path, *, dtype: Dtype) -> Any:
    """Return a folder's causal language model, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
    ).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer, with the end of sequence as padding where it has none.

    Raises:
        ArtifactError: If it cannot be loaded, or not without code of its own, or has neither token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a stranger's files can make transformers fail in any way
        reason = shorten(str(error), 200)
        raise ArtifactError(f"{folder}: its tokenizer cannot be loaded: {reason}") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ArtifactError(
            f"{folder}: its tokenizer has neither a pad_token nor an eos_token, so shorter texts "
            "cannot be padded; name a token of its vocabulary that ends no text in "
            'tokenizer_config.json, such as "pad_token": "<unk>"'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer and its identity."""

    model: Any
    tokenizer: Any
    base: BaseIdentity
    name: str

    @classmethod
    def load(cls, spec: str | Path | None = None, *, dtype: Dtype = "bfloat16") -> "LanguageModel":
        """Load a model by the names that `model_folder` takes.

        Args:
            spec: None for the embedded model.
            dtype: `bfloat16` is about three times as fast as `float32` on a CPU and leaves
                likelihoods with an error of about 1 %.
        """
        folder = model_folder(spec)
        model = load_causal_lm(folder.path, dtype=dtype)
        return cls(model, load_tokenizer(folder.path), folder.base, folder.name)
