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
from typing import NamedTuple, TypeVar

from morlaif_hub.bank.adapter_config import ADAPTER_CONFIG
from morlaif_hub.bank.adapters import check_base, describe_base
from morlaif_hub.errors import ArtifactError, ModelNotFoundError, WrongWayError
from morlaif_hub.hub.access import Asked
from morlaif_hub.hub.artifact import open_artifact, seal
from morlaif_hub.hub.client import parse_repository
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    BankManifest,
    BaseIdentity,
    BaseManifest,
    DatasetReference,
    FeedbackManifest,
    JudgeRecord,
    Manifest,
    ObjectiveRecord,
    PolicyManifest,
    PreferenceModelManifest,
    manifest_kind,
    manifest_sha256,
    read_manifest,
)
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.publish.names import BASE_PREFIX, base_name, default_repo_id
from morlaif_hub.publish.published import Pinned, content_key, find_published

JudgeT = TypeVar("JudgeT", JudgeRecord, JudgeRecord | None)

ANYBODY = "<user>"
"""Stands for the account in a dry run without a token."""


class Need(NamedTuple):
    """Something that should be on the Hub first.

    Attributes:
        what: In words.
        command: What publishes it.
        required: Whether the push is refused without it.
    """

    what: str
    command: str
    required: bool


class Part(NamedTuple):
    """A repository that an artifact names.

    Attributes:
        what: In words.
        asked: Where it is.
        command: What publishes it.
        required: Whether the artifact cannot be loaded without it.
    """

    what: str
    asked: Asked
    command: str
    required: bool


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
        ArtifactError, ManifestError: If the folder is no artifact, or is damaged or unsafe.
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
    target = repo_id or default_repo_id(manifest, owner or ANYBODY)
    links = _Links(folder, target.partition("/")[0], owner=owner, base_repo=base_repo)
    linked = replace(links.follow(manifest), repo_id=target, files=())
    with TemporaryDirectory(prefix="morlaif-release-") as scratch:
        staging = Path(scratch, target.rpartition("/")[2])
        for entry in manifest.files:
            _copy(folder / entry.path, staging / entry.path)
        _name_base(staging, linked)
        sealed = seal(staging, linked)
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


class _Links:
    """Finds on the Hub what an artifact names by a folder or by a hash, and notes what is missing.

    Args:
        folder: The artifact.
        namespace: Of the repository that it is published as.
        owner: The account; None to look for nothing.
        base_repo: What the user says holds the base.
    """

    def __init__(
        self, folder: Path, namespace: str, *, owner: str | None, base_repo: str | None
    ) -> None:
        self._folder = folder
        self._namespaces = list(dict.fromkeys((namespace, owner))) if owner else []
        self._owner = owner or ANYBODY
        self._base_repo = base_repo
        self._found: dict[tuple[str, str], Pinned | None] = {}
        self.needs: list[Need] = []
        self.parts: list[Part] = []

    def follow(self, manifest: Manifest) -> Manifest:
        """Return the manifest with repositories and commits for all that it needs."""
        match manifest:
            case BaseManifest():  # it holds its own weights, whose repository is the manifest's
                return replace(manifest, base=replace(manifest.base, repo_id=None, revision=None))
            case PreferenceModelManifest():
                return replace(
                    manifest,
                    base=self._base(manifest.base),
                    dataset=self._dataset(manifest),
                    judge=self._judge(manifest.judge),
                )
            case FeedbackManifest():
                return replace(manifest, judge=self._judge(manifest.judge))
            case BankManifest():
                return replace(manifest, objectives=self._members(manifest.objectives))
            case PolicyManifest():
                base = self._base(manifest.base)
                return replace(manifest, base=base, objectives=self._members(manifest.objectives))
        raise AssertionError(f"no such kind of artifact: {manifest.kind}")

    def _judge(self, judge: JudgeT) -> JudgeT:
        """Return a judge whose model is named by its repository, if it is on the Hub."""
        if judge is None or judge.base is None or judge.base.repo_id is not None:
            return judge
        base = judge.base
        name = f"{BASE_PREFIX}{base_name(base)}"
        found = self._find("base", base.weights_sha256, name)
        if found is None:
            return judge
        linked = replace(base, repo_id=found.repo_id, revision=found.revision)
        return replace(judge, base=linked)

    def _base(self, base: BaseIdentity) -> BaseIdentity:
        name = f"{BASE_PREFIX}{base_name(base)}"
        if self._base_repo is not None:
            base = _checked_base(base, self._base_repo)
        elif base.revision is None and (found := self._find("base", base.weights_sha256, name)):
            base = replace(base, repo_id=found.repo_id, revision=found.revision)
        if base.repo_id is not None and base.revision is not None:
            asked, command = Asked(base.repo_id), "morlaif-hub push-base --public"
            self.parts.append(Part("its base", asked, command, required=True))
            return base
        embedded = base.source.startswith("gguf:")
        self.needs.append(
            Need(
                f"its base, {describe_base(base)}, is not on the Hub as far as is known here",
                "morlaif-hub push-base" + ("" if embedded else " --base MODEL"),
                required=True,
            )
        )
        return replace(base, repo_id=f"{self._owner}/{name}", revision=None)

    def _dataset(self, manifest: PreferenceModelManifest) -> DatasetReference:
        dataset, name = manifest.dataset, manifest.principle.name
        if dataset.repo_id is not None:
            return dataset
        if manifest.training.labels == "human":
            why = "the human choices that it learned from are in a file of this machine"
            command = f"morlaif-hub train-pm {name} --labels human --pairs USER/DATASET"
        else:
            command = f"morlaif-hub push-feedback {name}"
            if found := self._find("feedback-dataset", dataset.sha256, self._feedback_name(name)):
                asked = Asked(found.repo_id, repo_type="dataset")
                self.parts.append(Part("its data", asked, f"{command} --public", required=False))
                return replace(dataset, repo_id=found.repo_id, revision=found.revision)
            why = f"its feedback dataset on {name} is not on the Hub as far as is known here"
        self.needs.append(
            Need(f"{why}, so nobody else can measure its accuracy again", command, required=False)
        )
        return dataset

    def _feedback_name(self, principle: str) -> str | None:
        """Return what the feedback beside a preference model in its workspace is published as."""
        beside = self._folder.resolve().parent.parent / "feedback" / principle
        if manifest_kind(beside) != "feedback-dataset":
            return None
        kept = read_manifest(beside, FeedbackManifest)
        return default_repo_id(kept, self._owner).rpartition("/")[2]

    def _members(self, parts: tuple[ObjectiveRecord, ...]) -> tuple[ObjectiveRecord, ...]:
        return tuple(self._member(part) for part in parts)

    def _member(self, part: ObjectiveRecord) -> ObjectiveRecord:
        what, command = f"its preference model {part.name}", f"morlaif-hub push-pm {part.name}"
        if part.revision is not None:
            self.parts.append(Part(what, Asked(part.repo_id), f"{command} --public", True))
            return part
        there = (self._folder.resolve() / part.repo_id).resolve()
        manifest = open_artifact(there, PreferenceModelManifest)
        if manifest_sha256(there) != part.sha256:
            raise ArtifactError(
                f"{self._folder}: {part.name} ({there}) is not the preference model that it was "
                "made with, since its manifest differs; make the bank or policy again"
            )
        name = default_repo_id(manifest, self._owner).rpartition("/")[2]
        if found := self._find("preference-model", content_key(manifest), name):
            self.parts.append(Part(what, Asked(found.repo_id), f"{command} --public", True))
            return replace(
                part, repo_id=found.repo_id, revision=found.revision, sha256=found.sha256
            )
        self.needs.append(
            Need(
                f"{what} is not on the Hub as far as is known here",
                command,
                required=True,
            )
        )
        return replace(part, repo_id=f"{self._owner}/{name}")

    def _find(self, kind: str, key: str, name: str | None) -> Pinned | None:
        if not self._namespaces:
            return None
        if (kind, key) not in self._found:
            guesses = [f"{namespace}/{name}" for namespace in self._namespaces] if name else []
            self._found[kind, key] = find_published(kind, key, guesses=guesses)
        return self._found[kind, key]


def _checked_base(declared: BaseIdentity, source: str) -> BaseIdentity:
    """Return the base at a repository that the user named, its weights compared."""
    asked = parse_repository(source)
    if found := find_published("base", declared.weights_sha256, guesses=[source]):
        return replace(declared, repo_id=asked.repo_id, revision=found.revision)
    # Not a base of ours, so its weights are hashed here; that takes a download.
    there = model_folder(source)
    check_base(declared, there.base, f"--base-repo {source}")
    return replace(declared, repo_id=asked.repo_id, revision=there.base.revision)


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
