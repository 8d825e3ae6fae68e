"""Artifacts: folders that are written whole or not at all, and checked whenever they are read.

The manifest lists every other file with its size and SHA-256. Folders come from strangers, so a
link that leads out of one and weights that need pickle are refused wherever they are met.
"""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from operator import index
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any, NamedTuple

from morlaif_hub.errors import ArtifactError, WorkspaceError
from morlaif_hub.hub.cards import render_card
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    FileEntry,
    M,
    dump_manifest,
    parse_manifest,
    read_manifest,
)
from morlaif_hub.hub.remote_files import REMOVED_SAID, file_sha256, refuse_damaged

CARD_NAME = "README.md"
POINTER_SAID = "only a Git LFS pointer to the file, not the file; get the folder again with LFS"
FIGURES_FOLDER = "figures"

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library
_POINTER = b"version https://git-lfs"
_CHUNK = 1 << 20  # bytes
_IN_CACHE = re.compile(r"(models|datasets|spaces)--")
# What reading JSON or bytes of another make than expected can end in.
_MALFORMED = (
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


def cache_folder() -> Path:
    """Return the folder for what can be made again: `MORLAIF_CACHE`, or `~/.cache/morlaif`.

    It is created for its owner alone, since judge answers are kept in it.

    Raises:
        WorkspaceError: If it cannot be created.
    """
    folder = Path(os.environ.get("MORLAIF_CACHE") or "~/.cache/morlaif").expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"the cache {folder} cannot be created: {error.strerror or error}; "
            "set MORLAIF_CACHE to a folder that can be written"
        ) from error
    return folder


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `folder` that takes its place when the block succeeds.

    Until then the old version stays as it is, and after an exception it still does. A folder
    cannot be exchanged for another in one step, so a process that is killed between the two
    renames leaves the old version beside the place; the next call puts it back. What else a dead
    process left there is removed.

    Raises:
        WorkspaceError: If the place cannot be written.
    """
    target = folder.resolve()
    staged = _beside(target, "new")
    if target.exists() and not target.is_dir():
        raise WorkspaceError(f"{folder} is a file, where a folder is to be written; move it away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        staged.mkdir()
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield staged
        try:
            _exchange(staged, target)
        except OSError as error:
            raise _not_writable(folder, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # no longer there when it took the place


def seal(folder: Path, manifest: M) -> M:
    """Write the manifest and the card of a folder whose other files are complete.

    Returns:
        The manifest with every file of the folder listed, as it will be read.

    Raises:
        ArtifactError: If a file must not be in an artifact; the message names it and the reason.
        ManifestError: If the manifest could not be read back.
        WorkspaceError: If the folder cannot be written.
    """
    entries = tuple(
        FileEntry(path=path, size=(folder / path).stat().st_size, sha256=file_sha256(folder / path))
        for path in _files(folder, str(folder))
        if path not in (MANIFEST_NAME, CARD_NAME)
    )
    text = dump_manifest(replace(manifest, files=entries))
    sealed = parse_manifest(text, type(manifest), str(folder / MANIFEST_NAME))
    card = render_card(sealed, figures=figure_names(sealed.files))
    try:
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8", newline="\n")
        (folder / CARD_NAME).write_text(card, encoding="utf-8", newline="\n")
    except OSError as error:
        raise _not_writable(folder, error) from error
    return sealed


def open_artifact(folder: Path, expected: type[M], *, where: str | None = None) -> M:
    """Return an artifact's manifest after checking the folder's files against it.

    A file of the Hub's cache that is not what the manifest says is removed from there, so that the
    next try downloads it again.

    Args:
        folder: A local folder; a snapshot in the Hub's cache is one.
        expected: The class of manifest that is wanted.
        where: What errors call the folder, such as the repository that it is a copy of.

    Raises:
        ManifestError: If there is no valid manifest of that kind.
        ArtifactError: If a listed file is missing or differs, weights are there that are not
            listed, or a file must not be in an artifact; the message names it and the reason.
    """
    where = where or str(folder)
    present = _files(folder, where)
    refuse_damaged(folder, where, [MANIFEST_NAME])
    manifest = read_manifest(folder, expected, where=where)
    listed = {entry.path for entry in manifest.files}
    for path in present:
        if PurePosixPath(path).suffix.lower() == ".safetensors" and path not in listed:
            raise ArtifactError(f"{where}: {path}: weights that {MANIFEST_NAME} does not list")
    for entry in manifest.files:
        _refuse_pickle(entry.path, where)  # a listed one need not have been fetched
        _check(folder, entry, where)
    return manifest


def figure_names(files: tuple[FileEntry, ...]) -> list[str]:
    """Return the names of an artifact's images, relative to its folder of figures."""
    paths = [PurePosixPath(entry.path) for entry in files]
    images = [p for p in paths if p.parts[0] == FIGURES_FOLDER and p.suffix in (".png", ".svg")]
    return [str(path.relative_to(FIGURES_FOLDER)) for path in images]


def weights_sha256(folder: Path) -> str:
    """Return the hash over the names, types, shapes and bytes of a model's tensors.

    One file and shards of the same tensors have the same hash; an adapter's files do not count.
    Nothing but the safetensors headers is interpreted, and one chunk is in memory at a time.

    Raises:
        ArtifactError: If the folder has no complete weights in safetensors files.
    """
    tensors: dict[str, tuple[str, list[int], str]] = {}
    for path in _weight_files(folder):
        for tensor, sha256 in _hash_tensors(path):
            if tensor.name in tensors:
                raise ArtifactError(f"{path}: tensor {tensor.name!r} is in another shard as well")
            tensors[tensor.name] = (tensor.dtype, tensor.shape, sha256)
    canonical = json.dumps(sorted(tensors.items()), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_pointer(path: Path) -> bool:
    """Whether a file is Git LFS's note of where the real file is, as a clone without LFS has it."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _beside(target: Path, ending: str) -> Path:
    # Hidden, and in the same folder, so that renaming it never copies. The process's number tells
    # later ones whether it is still in use.
    return target.with_name(f".{target.name}.{os.getpid()}-{token_hex(4)}.{ending}")


def _clear_leftovers(target: Path) -> None:
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.(new|old)")
    for path in list(target.parent.iterdir()):
        found = name.fullmatch(path.name)
        if found is None or _is_alive(int(found[1])):
            continue
        if found[2] == "old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _exchange(staged: Path, target: Path) -> None:
    old = _beside(target, "old")
    if target.exists():
        target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{folder} cannot be written: {error.strerror or error}; free the place or choose another"
    )


def _files(folder: Path, where: str) -> list[str]:
    """Return the paths of all files below a folder, refusing those that no artifact may have."""
    found = []
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            _refuse_link(folder, path, where)
            if name in names:
                _refuse_unsafe(folder, path, where)
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _refuse_link(folder: Path, path: Path, where: str) -> None:
    if not path.is_symlink():
        return
    # Unlike resolve(), realpath() has no error of its own for links that go round in a circle.
    inside, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    homes = [inside, *_stores(inside)]
    if path.is_dir() or not any(target.is_relative_to(home) for home in homes):
        name = path.relative_to(folder).as_posix()
        raise ArtifactError(f"{where}: {name}: a link that leads out of the folder, or to a folder")


def _stores(folder: Path) -> list[Path]:
    """Return where the Hub's cache keeps what a snapshot in it links to; elsewhere there is none.

    A repository's files are links into its blobs; of what came over Xet, these are links into the
    blobs that all repositories share.
    """
    repository = folder.parent.parent
    if folder.parent.name != "snapshots":
        return []
    shared = [repository.parent / "blobs"] if _IN_CACHE.match(repository.name) else []
    return [repository / "blobs", *shared]


def _refuse_unsafe(folder: Path, path: Path, where: str) -> None:
    name = path.relative_to(folder).as_posix()
    if not path.is_file():
        raise ArtifactError(f"{where}: {name}: not a plain file")
    _refuse_pickle(name, where)


def _refuse_pickle(name: str, where: str) -> None:
    if PurePosixPath(name).suffix.lower() in _PICKLED:
        raise ArtifactError(
            f"{where}: {name}: may run code when it is loaded, as a pickle; use safetensors instead"
        )


def _check(folder: Path, entry: FileEntry, where: str) -> None:
    path = folder / entry.path
    if not path.is_file():
        raise ArtifactError(f"{where}: {entry.path}: listed in {MANIFEST_NAME}, but not there")
    size = path.stat().st_size
    if size != entry.size:
        raise ArtifactError(
            f"{where}: {entry.path}: has {size} bytes, where {MANIFEST_NAME} says {entry.size}; "
            f"{_next_step(folder, path)}"
        )
    if file_sha256(path) != entry.sha256:
        raise ArtifactError(
            f"{where}: {entry.path}: its bytes are not those that {MANIFEST_NAME} lists (SHA-256 "
            f"differs); {_next_step(folder, path)}"
        )


def _next_step(folder: Path, path: Path) -> str:
    """Say how to get a damaged file again; in the Hub's cache it is removed to make that so."""
    if not path.is_symlink() or not _stores(Path(os.path.realpath(folder))):
        return "get the folder again"
    blob = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
    for copy in (path.resolve(), blob, path):  # what came over Xet is two links away
        copy.unlink(missing_ok=True)
    return REMOVED_SAID


class _Tensor(NamedTuple):
    """A tensor as a safetensors header describes it; `start` and `end` in bytes of the file."""

    name: str
    dtype: str
    shape: list[int]
    start: int
    end: int


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    shards = folder / _WEIGHTS_INDEX
    if not shards.is_file():
        raise ArtifactError(f"{folder}: has neither {_WEIGHTS} nor {_WEIGHTS_INDEX}")
    try:
        names = list(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())
    except _MALFORMED as error:
        raise ArtifactError(f"{shards}: not an index of shards: {error}") from error
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or not (folder / name).is_file():
            raise ArtifactError(f"{shards}: shard {name!r} is not a file beside it")
    return [folder / name for name in sorted(set(names))]


def _hash_tensors(path: Path) -> Iterator[tuple[_Tensor, str]]:
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        for tensor in sorted(_header(file, path), key=lambda tensor: tensor.start):
            digest, left = hashlib.sha256(), tensor.end - tensor.start
            file.seek(tensor.start)
            while left and (count := file.readinto(buffer[: min(left, _CHUNK)])):
                digest.update(buffer[:count])
                left -= count
            yield tensor, digest.hexdigest()


def _header(file: FileIO, path: Path) -> list[_Tensor]:
    if is_pointer(path):
        raise ArtifactError(f"{path}: {POINTER_SAID}")
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return [_tensor(name, header[name], 8 + length, path.stat().st_size) for name in header]
    except _MALFORMED as error:
        raise ArtifactError(f"{path}: not a safetensors file: {error}") from error


def _tensor(name: str, entry: dict[str, Any], data: int, size: int) -> _Tensor:
    start, end = (data + index(offset) for offset in entry["data_offsets"])
    if not data <= start <= end <= size:
        raise ValueError(f"tensor {name!r} at bytes {start} to {end} of {size}")
    return _Tensor(name, str(entry["dtype"]), [index(n) for n in entry["shape"]], start, end)
