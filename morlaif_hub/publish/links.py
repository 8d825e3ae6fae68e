"""What an artifact names on this machine, found on the Hub, or noted as missing there."""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from morlaif_hub.bank.adapters import check_base, describe_base
from morlaif_hub.errors import ArtifactError, ManifestError, ModelNotFoundError
from morlaif_hub.hub.access import Asked
from morlaif_hub.hub.artifact import open_artifact
from morlaif_hub.hub.client import parse_repository
from morlaif_hub.hub.manifest import (
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
from morlaif_hub.hub.upload import remote
from morlaif_hub.models.language_model import model_folder
from morlaif_hub.publish.names import ANYBODY, BASE_PREFIX, base_name, default_repo_id
from morlaif_hub.publish.published import (
    Pinned,
    content_key,
    find_published,
    find_published_base,
    holds_weights,
)

JudgeT = TypeVar("JudgeT", JudgeRecord, JudgeRecord | None)
# After a colon (models) or an equals sign (options); what follows the colon of a URL is no path.
_PATH_IN_SPEC = re.compile(r"(?<=[:=])(?:~|\.{0,2})/(?!/)[^?&]*")


def _without_folders(spec: str) -> str:
    return _PATH_IN_SPEC.sub(lambda found: Path(found[0]).name, spec)


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


class Links:
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
                return replace(
                    manifest, objectives=self._members(manifest.objectives, required=True)
                )
            case PolicyManifest():
                base = self._base(manifest.base)
                members = self._members(manifest.objectives, required=False)
                return replace(manifest, base=base, objectives=members)
        raise AssertionError(f"no such kind of artifact: {manifest.kind}")

    def _judge(self, judge: JudgeT) -> JudgeT:
        """Return a judge whose model is named by its repository, or at least by no path."""
        if judge is None:
            return judge
        judge = replace(judge, spec=_without_folders(judge.spec))
        base = judge.base
        if base is None or base.repo_id is not None:
            return judge
        found = self._find_base(base)
        if found is None:
            return judge
        return replace(judge, base=replace(base, repo_id=found.repo_id, revision=found.revision))

    def _base(self, base: BaseIdentity) -> BaseIdentity:
        name = f"{BASE_PREFIX}{base_name(base)}"
        if self._base_repo is not None:
            base = _checked_base(base, self._base_repo)
        elif base.revision is None and (found := self._find_base(base)):
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
            repo_id = "/".join(dataset.repo_id.split("/")[:2])  # without a folder in it
            asked = Asked(repo_id, repo_type="dataset")
            self.parts.append(Part("its data", asked, "open it in its settings on the Hub", False))
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

    def _members(
        self, parts: tuple[ObjectiveRecord, ...], *, required: bool
    ) -> tuple[ObjectiveRecord, ...]:
        """Return a bank's members, or what a policy was rewarded by, which it loads without."""
        return tuple(self._member(part, required) for part in parts)

    def _member(self, part: ObjectiveRecord, required: bool) -> ObjectiveRecord:
        what, command = f"its preference model {part.name}", f"morlaif-hub push-pm {part.name}"
        if part.revision is not None:
            self.parts.append(Part(what, Asked(part.repo_id), f"{command} --public", required))
            return part
        try:
            manifest = self._beside(part)
        except (ManifestError, ArtifactError) as error:
            if required:
                raise
            self.needs.append(Need(f"{what} cannot be named: {error}", command, required=False))
            return replace(part, repo_id=f"{self._owner}/morlaif-pm-{part.name}")
        name = default_repo_id(manifest, self._owner).rpartition("/")[2]
        if found := self._find("preference-model", content_key(manifest), name):
            self.parts.append(Part(what, Asked(found.repo_id), f"{command} --public", required))
            return replace(
                part, repo_id=found.repo_id, revision=found.revision, sha256=found.sha256
            )
        why = f"{what} is not on the Hub as far as is known here"
        self.needs.append(Need(why, command, required))
        return replace(part, repo_id=f"{self._owner}/{name}")

    def _beside(self, part: ObjectiveRecord) -> PreferenceModelManifest:
        """Return the manifest of a member in the same workspace, if it is still the one."""
        there = (self._folder.resolve() / part.repo_id).resolve()
        if not there.is_dir():
            raise ArtifactError(
                f"{part.name} is not in {there} any more; train it again, or make a bank without "
                "it with morlaif-hub push-bank --bank ..."
            )
        manifest = open_artifact(there, PreferenceModelManifest)
        if manifest_sha256(there) != part.sha256:
            raise ArtifactError(
                f"{part.name} ({there}) is not the preference model that {self._folder} was made "
                "with, since its manifest differs; make that again"
            )
        return manifest

    def _find(self, kind: str, key: str, name: str | None) -> Pinned | None:
        if not self._namespaces:
            return None
        if (kind, key) not in self._found:
            self._found[kind, key] = find_published(kind, key, guesses=self._guesses(name))
        return self._found[kind, key]

    def _find_base(self, base: BaseIdentity) -> Pinned | None:
        if not self._namespaces:
            return None
        key = ("base", base.weights_sha256)
        if key not in self._found:
            guesses = self._guesses(f"{BASE_PREFIX}{base_name(base)}")
            self._found[key] = find_published_base(base, guesses=guesses)
        return self._found[key]

    def _guesses(self, name: str | None) -> list[str]:
        return [f"{namespace}/{name}" for namespace in self._namespaces] if name else []


def _checked_base(declared: BaseIdentity, source: str) -> BaseIdentity:
    """Return the base at a repository that the user named, its weights compared."""
    asked = parse_repository(source)
    state = remote(asked)
    if state is None:
        raise ModelNotFoundError(f"--base-repo {source}: there is no such model that you may read")
    pinned = Pinned(asked.repo_id, state.commit, "")
    if not holds_weights(pinned, declared):
        there = model_folder(f"{asked.repo_id}@{state.commit}")
        check_base(declared, there.base, f"--base-repo {source}")
    return replace(declared, repo_id=asked.repo_id, revision=state.commit)
