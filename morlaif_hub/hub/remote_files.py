"""Files as the Hub lists them, with the hash that each one on this machine has to have."""

import hashlib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from morlaif_hub.errors import ArtifactError

REMOVED_SAID = "its copy was removed from the Hub's cache, so try again to download it anew"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")


class RemoteFile(NamedTuple):
    """A file as the Hub lists it: `sha256` of a large one, `git_oid` (SHA-1) of any other."""

    size: int
    git_oid: str
    sha256: str | None

    def is_at(self, path: Path) -> bool:
        """Whether the file at a path of this machine has the same bytes."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return file_sha256(path) == self.sha256
        return _git_oid(path) == self.git_oid


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed_files(entries: Iterable[object]) -> dict[str, RemoteFile]:
    """Return the files of a repository's tree by path, as the Hub's client gives its entries."""
    from huggingface_hub.hf_api import RepoFile

    return {
        entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def remove_damaged(folder: Path, names: Collection[str] | None = None) -> list[str]:
    """Remove from the Hub's cache what came damaged, so that it is downloaded anew.

    The client compares sizes only. In its cache a folder's files are links to others that are named
    by what the Hub says is their hash; where the system has no links, nothing is checked here.

    Args:
        folder: A snapshot.
        names: Of the files to look at; None for all.

    Returns:
        The paths of what was removed.

    Source:
        https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    paths = sorted(folder.rglob("*")) if names is None else [folder / name for name in names]
    links = [path for path in paths if path.is_symlink() and _is_cached(path, folder)]
    damaged = [path for path in links if not _is_what_it_should_be(path)]
    for path in damaged:
        _remove(path)
    return [path.relative_to(folder).as_posix() for path in damaged]


def refuse_damaged(folder: Path, where: str, names: Collection[str] | None = None) -> None:
    """Check files of the Hub's cache, which have no other hash, against what the Hub lists.

    A damaged one is removed from there, so that the next try downloads it again.

    Args:
        folder: A snapshot; of any other folder nothing is checked.
        where: What errors call it.
        names: Of the files; None for all.

    Raises:
        ArtifactError: If one is damaged.
    """
    if damaged := remove_damaged(folder, names):
        raise ArtifactError(
            f"{where}: {', '.join(damaged)}: other bytes than the Hub lists (hash differs); "
            f"{REMOVED_SAID}"
        )


def note_commit(folder: Path, revision: str | None) -> None:
    """Note in the Hub's cache that a branch or tag is at a snapshot, for when there is no network.

    The client would do so if it was told the branch, but it would ask the Hub for the commit once
    more, which may be another one by then.

    Args:
        folder: The snapshot.
        revision: None for the main branch.

    Source:
        https://huggingface.co/docs/huggingface_hub/guides/manage-cache (`refs`)
    """
    from huggingface_hub import constants

    name = revision or constants.DEFAULT_REVISION
    if name == folder.name or not folder.is_dir():
        return
    noted = folder.parent.parent / "refs" / name
    noted.parent.mkdir(parents=True, exist_ok=True)
    unfinished = noted.with_name(f".{noted.name}.{os.getpid()}-{token_hex(4)}")
    unfinished.write_text(folder.name, encoding="utf-8")
    unfinished.replace(noted)


def _is_cached(link: Path, folder: Path) -> bool:
    """Whether a link is one of the Hub's cache; what others link to is not ours to remove."""
    target, repository = Path(os.path.realpath(link)), Path(os.path.realpath(folder)).parent.parent
    stores = [repository / "blobs", repository.parent / "blobs"]
    inside = link.exists() and folder.parent.name == "snapshots"
    return inside and any(map(target.is_relative_to, stores))


def _is_what_it_should_be(link: Path) -> bool:
    name = link.readlink().name
    if _SHA256.fullmatch(name):
        return file_sha256(link) == name
    return not _GIT_OID.fullmatch(name) or _git_oid(link) == name


def _remove(link: Path) -> None:
    copies = [link]
    while copies[-1].is_symlink():  # what came over Xet is two links away
        copies.append(copies[-1].parent.resolve() / copies[-1].readlink())
    for copy in reversed(copies):
        copy.unlink(missing_ok=True)


def _git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
