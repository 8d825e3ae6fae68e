"""Releases: an artifact's own files, naming what it needs by repository and commit.

A workspace names things by folders; what is published must not. A release is a copy of an artifact
in which every such place is a repository at a commit: its base, its data, a bank's members.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from morlaif_hub.bank.adapter_config import ADAPTER_CONFIG
from morlaif_hub.errors import ArtifactError, ModelNotFoundError, WrongWayError
from morlaif_hub.hub.artifact import open_artifact, seal
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    manifest_kind,
)
from morlaif_hub.publish.links import Links, Need, Part
from morlaif_hub.publish.names import ANYBODY, target_repository


@dataclass(frozen=True)
class Release:
    """What would be published.

    Attributes:
        folder: Exactly the files that go into the repository.
        manifest: Theirs.
        repo_id: The repository.
        needs: What is not on the Hub yet.
        parts: What it names that is on the Hub.
    """

    folder: Path
    manifest: Manifest
    repo_id: str
    needs: tuple[Need, ...]
    parts: tuple[Part, ...]


@contextmanager
def staged_release(
    folder: Path, repo_id: str | None, *, owner: str | None, base_repo: str | None
) -> Iterator[Release]:
    """Yield an artifact's release, in a folder that is removed afterwards.

    Args:
        folder: The artifact.
        repo_id: The repository; None for the default name.
        owner: Whose default names are looked at for what it needs; None for a dry run without a
            token, in which nothing is looked for.
        base_repo: A repository that holds exactly its base's weights.

    Raises:
        OptionError: If `repo_id` is no repository.
        ArtifactError, ManifestError: If the folder is no artifact, or is damaged or unsafe, or
            names a folder of this machine where it must not.
        BaseMismatchError: If `base_repo` holds other weights.
        WrongWayError: If it is a preference model that prefers the worse side of its probes.
        HubError: If the Hub cannot be reached.
    """
    kind = manifest_kind(folder)
    if kind not in MANIFESTS:
        raise ModelNotFoundError(
            f"{folder}: there is no artifact, since it has no readable {MANIFEST_NAME}"
        )
    manifest: Manifest = open_artifact(folder, MANIFESTS[kind])
    refuse_wrong_way(manifest)
    target = target_repository(repo_id, manifest, owner or ANYBODY)
    links = Links(folder, target.partition("/")[0], owner=owner, base_repo=base_repo)
    linked = replace(links.follow(manifest), repo_id=target, files=())
    with TemporaryDirectory(prefix="morlaif-release-") as scratch:
        staging = Path(scratch, "release")
        for entry in manifest.files:
            _copy(folder / entry.path, staging / entry.path)
        _name_base(staging, linked)
        sealed = seal(staging, linked)
        _refuse_places(staging, folder)
        yield Release(staging, sealed, target, tuple(links.needs), tuple(links.parts))


def refuse_wrong_way(manifest: Manifest) -> None:
    """Refuse a preference model that its own probes show to point the wrong way.

    Raises:
        WrongWayError: If it does.
    """
    if not isinstance(manifest, PreferenceModelManifest) or manifest.validation is None:
        return
    seen = manifest.validation
    if seen.verdict == "wrong way":
        raise WrongWayError(
            f"{manifest.principle.name}: this preference model prefers the worse side of its "
            f"probes (accuracy {seen.accuracy:.2f} on {seen.n}, 95 % interval "
            f"{seen.interval[0]:.2f} to {seen.interval[1]:.2f}), so it is not published; look at "
            "its labels and train it again"
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or link to it: weights are large and nothing here writes into them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    if target.suffix == ".safetensors":
        try:
            os.link(real, target)
        except OSError:  # another file system
            shutil.copyfile(real, target)
    else:
        shutil.copyfile(real, target)


def _name_base(folder: Path, manifest: Manifest) -> None:
    """Name the base in an adapter's configuration, where PEFT and transformers look for it."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or not isinstance(manifest, PreferenceModelManifest | PolicyManifest):
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = manifest.base.repo_id
    config["revision"] = manifest.base.revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_places(staging: Path, folder: Path) -> None:
    """Refuse a release that tells where on this machine it was made, in any file of text."""
    home = str(Path.home())
    places = {str(folder.resolve().parent), *([home] if home.count("/") > 1 else [])}
    for path in sorted(staging.rglob("*")):
        if path.suffix not in (".json", ".md", ".jinja", ".txt"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := [place for place in places if place in text]:
            raise ArtifactError(
                f"{folder}: {path.relative_to(staging).as_posix()} names the folder {found[0]} of "
                "this machine, which nobody else needs to know; take that out first"
            )
