"""Preference models as the bytes of their files, for repositories that no push makes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

Files = dict[str, bytes]
Change = Callable[[Files], Files]
Tensors = dict[str, torch.Tensor]

MANIFEST, CONFIG, WEIGHTS = "morlaif.json", "adapter_config.json", "adapter_model.safetensors"
HEAD = "base_model.model.score.weight"


def read_files(folder: Path) -> Files:
    """Return the bytes of each file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_files(files: Files, folder: Path) -> Path:
    """Write files into a folder, and return it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def resealed(files: Files, **fields: Any) -> Files:
    """Return files whose manifest lists them as they are and says something else besides.

    So does whoever means harm: hashes that agree prove nothing but that nothing broke on the way.
    """
    manifest = {**json.loads(files[MANIFEST]), **fields}
    manifest["files"] = [
        {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name not in (MANIFEST, "README.md")
    ]
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def says(**fields: Any) -> Change:
    """Return a change of the manifest."""
    return lambda files: resealed(files, **fields)


def has(name: str, content: bytes) -> Change:
    """Return a change of one file, which the manifest lists as it then is."""
    return lambda files: resealed({**files, name: content})


def asks(**options: Any) -> Change:
    """Return a change of the adapter's configuration."""

    def change(files: Files) -> Files:
        config = {**json.loads(files[CONFIG]), **options}
        return resealed({**files, CONFIG: json.dumps(config).encode()})

    return change


def weighs(change: Callable[[Tensors], Tensors]) -> Change:
    """Return a change of the adapter's tensors."""

    def changed(files: Files) -> Files:
        tensors = {name: tensor.clone() for name, tensor in change(load(files[WEIGHTS])).items()}
        return resealed({**files, WEIGHTS: save(tensors)})

    return changed


def plain(files: Files) -> Files:
    """Return what a repository without our manifest would have."""
    return {name: content for name, content in files.items() if name != MANIFEST}
