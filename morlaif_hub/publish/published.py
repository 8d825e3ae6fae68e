"""Finding on the Hub what was published before: a base, a data set, a preference model.

What counts is content: an artifact's key is the hash of what it is, whatever it is called. Names
that were used from this machine are remembered in the cache, only as places to look at.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from morlaif_hub.errors import DataError, ManifestError, ModelNotFoundError, WorkspaceError
from morlaif_hub.feedback.dataset import data_sha256
from morlaif_hub.hub.access import Asked, RepoType, endpoint
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.hub.client import fetch
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    BaseIdentity,
    BaseManifest,
    FeedbackManifest,
    Manifest,
    manifest_sha256,
    read_manifest,
    to_plain,
)
from morlaif_hub.hub.remote_files import file_sha256
from morlaif_hub.hub.upload import remote
from morlaif_hub.models.embedded import embedded_at_hand
from morlaif_hub.models.language_model import known_base, model_folder
from morlaif_hub.workspace import write_text

REMEMBERED = "published.json"

_WEIGHTS = ".safetensors"


class Pinned(NamedTuple):
    """A published artifact: its repository, its commit, the hash of its manifest there."""

    repo_id: str
    revision: str
    sha256: str


def repo_type(kind: str) -> RepoType:
    """Return the type of repository that a kind of artifact is kept in."""
    return "dataset" if kind == "feedback-dataset" else "model"


def content_key(manifest: Manifest) -> str:
    """Return the hash of what an artifact is, the same before and after it is published.

    Publishing writes repositories and commits into it, and so other hashes of its files; weights,
    rows, scores and everything that was measured stay.
    """
    match manifest:
        case BaseManifest():
            return manifest.base.weights_sha256
        case FeedbackManifest():
            return data_sha256(manifest)
    plain = _without_places(to_plain(manifest))
    plain["files"] = [e.sha256 for e in manifest.files if e.path.endswith(".safetensors")]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def remember(manifest: Manifest, repo_id: str) -> None:
    """Note where an artifact was published, as the first place to look for it.

    It is only a help for later: a cache that cannot be written makes no push fail.
    """
    noted = _noted()
    places = noted.setdefault(endpoint(), {}).setdefault(content_key(manifest), [])
    if repo_id in places:
        return
    places.insert(0, repo_id)
    with suppress(WorkspaceError):
        write_text(cache_folder() / REMEMBERED, json.dumps(noted, indent=1) + "\n")


def find_published(kind: str, key: str, *, guesses: Iterable[str]) -> Pinned | None:
    """Return where an artifact is on the Hub, None if it is at none of the places to look at.

    A base is looked for with `find_published_base`.

    Args:
        kind: Of artifact.
        key: The content that is wanted, as `content_key` gives it.
        guesses: Repositories to look at after those that are remembered.

    Raises:
        HubError: If the Hub cannot be reached, or refuses for another reason than that there is
            nothing.
    """
    for repo_id in _places(key, guesses):
        found = _look_at(repo_id, kind)
        if found is not None and content_key(found[1]) == key:
            return found[0]
    return None


def find_published_base(declared: BaseIdentity, *, guesses: Iterable[str]) -> Pinned | None:
    """Return where a base is on the Hub: a repository whose weights are those of the one here.

    What its manifest says is only a hint: its files are compared with those on this machine.

    Raises:
        HubError: As `find_published`.
    """
    for repo_id in _places(declared.weights_sha256, guesses):
        found = _look_at(repo_id, "base")
        if found is None or content_key(found[1]) != declared.weights_sha256:
            continue
        if holds_weights(found[0], declared):
            return found[0]
    return None


def holds_weights(pinned: Pinned, declared: BaseIdentity) -> bool:
    """Whether a repository holds a base's weights.

    The Hub names the SHA-256 of each large file. Where these are not those of the files here, as
    with other shards, the repository is downloaded and its tensors are hashed.

    Raises:
        HubError, ModelNotFoundError: If it cannot be read.
    """
    state = remote(Asked(pinned.repo_id, pinned.revision))
    files = state.files if state else {}
    theirs = {path: file.sha256 for path, file in files.items() if path.endswith(_WEIGHTS)}
    here = _here(declared)
    if here and theirs == {path.name: file_sha256(path) for path in here.glob(f"*{_WEIGHTS}")}:
        return True
    there = model_folder(f"{pinned.repo_id}@{pinned.revision}")
    return there.base.weights_sha256 == declared.weights_sha256


def _here(declared: BaseIdentity) -> Path | None:
    """Return the folder of a base on this machine; None if it is not here."""
    found = known_base(declared.weights_sha256)
    if found is None and embedded_at_hand(declared.source):
        found = model_folder(None)
    same = found is not None and found.base.weights_sha256 == declared.weights_sha256
    return found.path if found and same else None


def _places(key: str, guesses: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*_noted().get(endpoint(), {}).get(key, []), *guesses]))


def _look_at(repo_id: str, kind: str) -> tuple[Pinned, Manifest] | None:
    try:
        there = fetch(
            repo_id, repo_type=repo_type(kind), allow_patterns=[MANIFEST_NAME], quiet=True
        )
        if there.revision is None:
            return None
        read: Manifest = read_manifest(there.path, MANIFESTS[kind])
    except (ModelNotFoundError, DataError, ManifestError):
        return None
    return Pinned(str(there.repo_id), there.revision, manifest_sha256(there.path)), read


def _without_places(value: Any) -> Any:
    """Return plain values without repositories, their commits and the hashes of their manifests."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("repo_id", "revision")}
        if "high_score" in kept and "verdict" in kept:  # a bank's member: its manifest's hash
            kept.pop("sha256", None)
        return {k: _without_places(v) for k, v in kept.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return value


def _noted() -> dict[str, dict[str, list[str]]]:
    try:
        noted = json.loads((cache_folder() / REMEMBERED).read_text(encoding="utf-8"))
        return {
            str(hub): {str(key): [str(place) for place in places] for key, places in keys.items()}
            for hub, keys in noted.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
