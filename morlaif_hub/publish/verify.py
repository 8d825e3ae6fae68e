"""Verifying: what an artifact claims, beside what its files give here.

Every claim of a manifest that can be measured is measured again: hashes, the base's weights, golden
scores, the accuracy on the probes, and, where the data can be loaded, the accuracy on them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from morlaif_hub.bank.bank import PMBank, golden_distance, load_bank
from morlaif_hub.bank.bases import find_base
from morlaif_hub.errors import ArtifactError, DataError, ModelNotFoundError
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.access import RepoType
from morlaif_hub.hub.artifact import open_artifact, weights_sha256
from morlaif_hub.hub.client import Progress, Resolved, fetch, is_local
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    MANIFESTS,
    BankManifest,
    BaseManifest,
    FeedbackManifest,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    manifest_kind,
)
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.publish.checks import Check, near, same_weights, within
from morlaif_hub.publish.remeasure import Scores, accuracy_checks, golden_check, probe_check

_TELLING = [MANIFEST_NAME, "config.json", "adapter_config.json", "*.md", ".gitattributes"]


@dataclass(frozen=True)
class Verification:
    """What came out for one artifact.

    Attributes:
        source: Where it is: a repository at its commit, or a folder.
        kind: Which kind of artifact.
        manifest: What it says of itself.
        checks: Its claims, one by one.
    """

    source: str
    kind: str
    manifest: Manifest
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether no claim fails; one that could not be checked does not fail."""
        return all(check.verdict != "fails" for check in self.checks)


def verify(source: str | Path, *, progress: Progress | None = None) -> Verification:
    """Measure again what an artifact claims: somebody else's, or one's own.

    Args:
        source: A repo id, with `@revision` to pin one, or a local folder. A model is looked for
            first, then a data set.
        progress: Told how far each stage is.

    Returns:
        The claims with their verdicts. Files that differ from their hashes are an error, not a
        verdict: nothing can be said about the rest.

    Raises:
        ArtifactError: If files are damaged or unsafe, or a base is not what was declared.
        ModelNotFoundError: If there is neither a model nor a data set of that name.
        HubError: If the Hub refuses, or cannot be reached.
    """
    return verify_fetched(_fetched(source), deep=True, progress=progress)


def verify_fetched(
    found: Resolved,
    *,
    deep: bool,
    label: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify an artifact that is on this machine.

    Args:
        found: Its folder, and what it is a copy of.
        deep: Whether to measure accuracies too, which takes the data and minutes.
        label: What errors call it, if not what it is a copy of.
        progress: Told how far each stage is.

    Raises:
        ArtifactError: If it is no artifact, or its files are damaged or unsafe.
    """
    kind, label = manifest_kind(found.path), label or found.label
    if kind not in MANIFESTS:
        raise ArtifactError(
            f"{label}: no {MANIFEST_NAME} of a kind that is known here, so it claims nothing that "
            "can be checked"
        )
    manifest: Manifest = open_artifact(found.path, MANIFESTS[kind], where=label)
    tell = progress or (lambda _stage, _done, _total: None)
    look = _Look(found.path, label, deep, tell)
    checks = (_files(manifest), *_CHECKS[kind](manifest, look))
    return Verification(label, kind, manifest, checks)


class _Look(NamedTuple):
    """What is looked at, and how thoroughly."""

    path: Path
    label: str
    deep: bool
    tell: Progress


def _fetched(source: str | Path) -> Resolved:
    """Return a source's folder; of a repository that is no artifact, next to nothing is fetched."""
    if is_local(source):
        return fetch(source)
    repo_type, first = _found_as(source)
    if not (first.path / MANIFEST_NAME).is_file():
        return first
    return fetch(f"{first.repo_id}@{first.revision}", repo_type=repo_type)


def _found_as(source: str | Path) -> tuple[RepoType, Resolved]:
    """Return which type of repository a source is, and the few files that tell what it is."""
    said: list[str] = []
    types: tuple[RepoType, ...] = ("model", "dataset")
    for repo_type in types:
        try:
            return repo_type, fetch(source, repo_type=repo_type, allow_patterns=_TELLING)
        except (ModelNotFoundError, DataError) as error:
            said.append(str(error))
    # One that is there says what it lacks, such as a revision; that is the answer.
    lacking = [text for text in said if not text.startswith("there is no ")]
    both = said[0].replace("no model", "neither a model nor a data set", 1)
    raise ModelNotFoundError(lacking[0] if lacking else both)


def _files(manifest: Manifest) -> Check:
    size = sum(entry.size for entry in manifest.files)
    return Check(
        "files", f"{len(manifest.files)}, {size:,} bytes", "every SHA-256 as listed", "holds"
    )


def _base_checks(manifest: BaseManifest, look: _Look) -> Iterator[Check]:
    yield same_weights(manifest.base.weights_sha256, weights_sha256(look.path))


def _preference_model_checks(manifest: PreferenceModelManifest, look: _Look) -> Iterator[Check]:
    if manifest.form != "full":
        base = find_base(manifest.base, look.label)
        yield same_weights(manifest.base.weights_sha256, base.base.weights_sha256, "base weights")
    bank = load_bank([look.path])  # golden scores that are off are a finding here
    scores = Scores(bank, look.tell)
    yield golden_check(manifest, scores)
    yield probe_check(manifest, scores)
    if look.deep:
        yield from accuracy_checks(manifest, scores)


def _feedback_checks(manifest: FeedbackManifest, look: _Look) -> Iterator[Check]:
    dataset = FeedbackDataset.load(look.path)  # checks every row and every count
    labelled = [*dataset.splits.train, *dataset.splits.test]
    stated = f"{manifest.train_pairs:,} train and {manifest.test_pairs:,} test pairs"
    yield Check("rows", stated, "each read, each follows from its verdict", "holds")
    if not labelled:
        return
    report = bias_report([x.comparison for x in labelled], [x.verdict for x in labelled])
    for name in ("position_bias", "flip_rate", "consistency", "human_agreement"):
        said, seen = getattr(manifest.bias, name), getattr(report, name)
        if said is not None and seen is not None:  # sets of before lack some
            yield near(name.replace("_", " "), said.value, seen.value, 1e-6)
    for name in ("tie_rate", "mean_entropy"):
        said, seen = getattr(manifest.bias, name), getattr(report, name)
        yield near(name.replace("_", " "), said, seen, 1e-6)
    if manifest.bias.human_agreement is not None and report.human_agreement is None:
        said = f"{manifest.bias.human_agreement.n:,} pairs"
        yield Check("human agreement", said, "no pair has a human choice", "fails")


def _bank_checks(manifest: BankManifest, look: _Look) -> Iterator[Check]:
    bank = load_bank(look.path)
    names = ", ".join(bank.objectives)
    yield Check("preference models", names, "each the one that the bank was made of", "holds")
    yield from _said_of_members(manifest, bank)
    raw = Scores(bank, look.tell).golden()
    for column, (part, golden) in enumerate(zip(manifest.objectives, manifest.golden, strict=True)):
        worst = golden_distance(golden, raw[:, column])
        yield within(f"golden scores of {part.name}", golden.tolerance, worst)


def _said_of_members(manifest: BankManifest, bank: PMBank) -> Iterator[Check]:
    """Compare what a bank says of its members with what they say of themselves."""
    for part, member in zip(manifest.objectives, bank.members, strict=True):
        own = member.manifest
        if own is None:
            continue
        verdict = own.validation.verdict if own.validation else None
        same = (part.verdict, part.high_score) == (verdict, own.principle.high_score)
        yield Check(
            f"what is said of {part.name}",
            f"probes: {part.verdict or 'not validated'}",
            f"its own manifest: {verdict or 'not validated'}",
            "holds" if same else "fails",
        )


def _policy_checks(manifest: PolicyManifest, look: _Look) -> Iterator[Check]:
    policy = load_policy(look.path)
    if manifest.form == "lora":
        yield same_weights(manifest.base.weights_sha256, policy.base.weights_sha256, "base weights")
    yield Check("adapter", manifest.form, "fits its base, every tensor", "holds")
    if look.deep and manifest.sft is not None:
        loss = f"{manifest.sft.loss_after.value:.3f} nats"
        yield Check("held-out loss", loss, "needs its dialogues", "not checked")
    elif look.deep:
        yield Check("reward", f"{manifest.kl:.3f} nats of KL", "needs its prompts", "not checked")


_CHECKS: dict[str, Callable[[Any, _Look], Iterator[Check]]] = {
    "base": _base_checks,
    "preference-model": _preference_model_checks,
    "feedback-dataset": _feedback_checks,
    "bank": _bank_checks,
    "policy": _policy_checks,
}
