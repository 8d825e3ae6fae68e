"""A causal language model with its tokenizer and the identity of its weights."""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoTokenizer

from morlaif_hub.errors import ArtifactError, ModelNotFoundError
from morlaif_hub.hub.artifact import cache_folder, open_artifact, weights_sha256
from morlaif_hub.hub.client import fetch
from morlaif_hub.hub.manifest import MANIFEST_NAME, BaseIdentity, BaseManifest
from morlaif_hub.models.embedded import EMBEDDED, embedded_model
from morlaif_hub.workspace import write_text

Dtype = Literal["float32", "bfloat16"]
KNOWN_BASES = "bases.json"
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
        if not (fetched.path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{spec}: no config.json there; a transformers model in safetensors is wanted"
            )
        base = base_identity(fetched.path, fetched.repo_id, fetched.revision)
        found = ModelFolder(fetched.path, str(spec), base)
    _remember(found)
    return found


def known_base(weights_sha256: str) -> ModelFolder | None:
    """Return a model that was used on this machine before and has exactly these weights."""
    path = _known_bases().get(weights_sha256)
    if path is None or not (Path(path) / "config.json").is_file():
        return None
    found = model_folder(Path(path))
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
    if (folder / MANIFEST_NAME).is_file():
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


def load_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer, with the end of sequence as padding where it has none."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
        model = AutoModelForCausalLM.from_pretrained(folder.path, dtype=dtype, use_safetensors=True)
        model.eval()
        return cls(model, load_tokenizer(folder.path), folder.base, folder.name)
