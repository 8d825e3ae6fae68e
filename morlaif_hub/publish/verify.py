"""Verifying: what an artifact claims, beside what its files give here.

Every claim of a manifest that can be measured is measured again: hashes, the base's weights, golden
scores, the accuracy on the probes, and, where the data can be loaded, the accuracy on them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from morlaif_hub.bank.bank import PMBank, find_base, golden_distance, load_bank
from morlaif_hub.bank.golden import exact_products, golden_sequences
from morlaif_hub.comparisons import Comparison, read_comparisons
from morlaif_hub.errors import ArtifactError, DataError, ModelNotFoundError, MorlaifHubError
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.access import RepoType
from morlaif_hub.hub.artifact import open_artifact, weights_sha256
from morlaif_hub.hub.client import Progress, Resolved, fetch, is_local
from morlaif_hub.hub.manifest import (
    MANIFESTS,
    BankManifest,
    BaseManifest,
    Evaluation,
    FeedbackManifest,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    manifest_kind,
)
from morlaif_hub.judges.validation import probe_comparisons, probe_record
from morlaif_hub.policies.artifact import load_policy
from morlaif_hub.preference_models.calibrate import evaluate_pairs, longer_wins
from morlaif_hub.preference_models.preferences import (
    Preferences,
    feedback_preferences,
    human_preferences,
)
from morlaif_hub.principles import CONSTITUTIONS, Principle, load_constitution

Array = NDArray[np.float64]
Verdict = Literal["holds", "fails", "not checked"]

ACCURACY_TOLERANCE = 0.005
"""How far an accuracy may be off: near-ties flip with another processor's rounding."""
MOMENT_TOLERANCE = 0.01
"""How far a calibration's mean and deviation may be off, in units of the deviation."""


class Check(NamedTuple):
    """One claim: what was said, what was measured, and whether the one is the other."""

    claim: str
    stated: str
    measured: str
    verdict: Verdict


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
    found: Resolved, *, deep: bool, progress: Progress | None = None
) -> Verification:
    """Verify an artifact that is on this machine.

    Args:
        found: Its folder, and what it is a copy of.
        deep: Whether to measure accuracies too, which takes the data and minutes.
        progress: Told how far each stage is.

    Raises:
        ArtifactError: If it is no artifact, or its files are damaged or unsafe.
    """
    kind = manifest_kind(found.path)
    if kind not in MANIFESTS:
        raise ArtifactError(
            f"{found.label}: no morlaif.json of a kind that is known here, so it claims nothing "
            "that can be checked"
        )
    manifest: Manifest = open_artifact(found.path, MANIFESTS[kind], where=found.label)
    look = _Look(found, deep, progress or (lambda _stage, _done, _total: None))
    checks = (_files(manifest), *_CHECKS[kind](manifest, look))
    return Verification(found.label, kind, manifest, checks)


class _Look(NamedTuple):
    """What is looked at, and how thoroughly."""

    found: Resolved
    deep: bool
    tell: Progress


def _fetched(source: str | Path) -> Resolved:
    if is_local(source):
        return fetch(source)
    types: tuple[RepoType, ...] = ("model", "dataset")
    for repo_type in types:
        try:
            return fetch(source, repo_type=repo_type)
        except (ModelNotFoundError, DataError) as error:
            missing = error
    raise ModelNotFoundError(str(missing)) from missing


def _files(manifest: Manifest) -> Check:
    size = sum(entry.size for entry in manifest.files)
    return Check(
        "files", f"{len(manifest.files)}, {size:,} bytes", "every SHA-256 as listed", "holds"
    )


def _base_checks(manifest: BaseManifest, look: _Look) -> Iterator[Check]:
    yield _same_weights(manifest.base.weights_sha256, weights_sha256(look.found.path))


def _preference_model_checks(manifest: PreferenceModelManifest, look: _Look) -> Iterator[Check]:
    if manifest.form == "lora":
        base = find_base(manifest.base, look.found.label)
        yield _same_weights(manifest.base.weights_sha256, base.base.weights_sha256, "base weights")
    bank = load_bank([look.found.path])  # golden scores that are off are a finding here
    scores = _Scores(bank, look)
    yield _golden(manifest, scores)
    yield _direction(manifest, scores)
    if look.deep:
        yield from _accuracy(manifest, scores)


def _feedback_checks(manifest: FeedbackManifest, look: _Look) -> Iterator[Check]:
    dataset = FeedbackDataset.load(look.found.path)  # checks every row and every count
    labelled = [*dataset.splits.train, *dataset.splits.test]
    stated = f"{manifest.train_pairs:,} train and {manifest.test_pairs:,} test pairs"
    yield Check("rows", stated, "each read, each follows from its verdict", "holds")
    if not labelled:
        return
    report = bias_report([x.comparison for x in labelled], [x.verdict for x in labelled])
    for name in ("position_bias", "flip_rate"):
        said, seen = getattr(manifest.bias, name).value, getattr(report, name).value
        yield _near(name.replace("_", " "), said, seen, 1e-6)


def _bank_checks(manifest: BankManifest, look: _Look) -> Iterator[Check]:
    bank = load_bank(look.found.path)
    names = ", ".join(bank.objectives)
    yield Check("preference models", names, "each the one that the bank was made of", "holds")
    raw = _Scores(bank, look).golden()
    for column, (part, golden) in enumerate(zip(manifest.objectives, manifest.golden, strict=True)):
        worst = golden_distance(golden, raw[:, column])
        yield _within(f"golden scores of {part.name}", golden.tolerance, worst)


def _policy_checks(manifest: PolicyManifest, look: _Look) -> Iterator[Check]:
    policy = load_policy(look.found.path)
    if manifest.form == "lora":
        yield _same_weights(
            manifest.base.weights_sha256, policy.base.weights_sha256, "base weights"
        )
    yield Check("adapter", manifest.form, "fits its base, every tensor", "holds")
    if look.deep:
        yield Check("reward", f"{manifest.kl:.3f} nats of KL", "needs its prompts", "not checked")


_CHECKS: dict[str, Callable[[Any, _Look], Iterator[Check]]] = {
    "base": _base_checks,
    "preference-model": _preference_model_checks,
    "feedback-dataset": _feedback_checks,
    "bank": _bank_checks,
    "policy": _policy_checks,
}


class _Scores:
    """Raw scores of a bank on what manifests make claims about."""

    def __init__(self, bank: PMBank, look: _Look) -> None:
        self._bank, self._look = bank, look

    def golden(self) -> torch.Tensor:
        """Of the golden texts, shape (texts, objectives)."""
        with exact_products():
            return self._bank.score(*golden_sequences(), calibrated=False)

    def both(self, stage: str, pairs: Sequence[Comparison]) -> tuple[Array, Array]:
        """Of responses A and B by the first objective, each shape (pairs,)."""
        done, total = 0, 2 * len(pairs)

        def count(more: int) -> None:
            nonlocal done
            done += more
            self._look.tell(stage, done, total)

        scores = self._bank.score(
            [pair.prompt for pair in pairs for _ in range(2)],
            [text for pair in pairs for text in (pair.response_a, pair.response_b)],
            calibrated=False,
            progress=count,
        )
        self._look.tell(stage, total, total)  # equal texts are scored once
        numbers = scores[:, 0].double().numpy()
        return numbers[::2], numbers[1::2]


def _golden(manifest: PreferenceModelManifest, scores: _Scores) -> Check:
    worst = golden_distance(manifest.golden, scores.golden()[:, 0])
    return _within("golden scores", manifest.golden.tolerance, worst)


def _direction(manifest: PreferenceModelManifest, scores: _Scores) -> Check:
    """Check the verdict on the probes: a model that points the wrong way is no help."""
    stated = manifest.validation
    said = f"{stated.accuracy:.3f} on {stated.n} ({stated.verdict})" if stated else "nothing"
    principle = _known_principle(manifest)
    if principle is None:
        return Check("probes", said, "its probes are in no set that is installed", "not checked")
    score_a, score_b = scores.both("probes", probe_comparisons(principle))
    record = probe_record(principle, score_a - score_b)
    measured = f"{record.accuracy:.3f} on {record.n} ({record.verdict})"
    if record.verdict == "wrong way":
        return Check("probes", said, measured, "fails")
    if stated is None:
        return Check("probes", said, measured, "not checked")
    # One probe may be a near-tie that another processor rounds to the other side.
    agree = stated.n == record.n and abs(stated.accuracy - record.accuracy) <= 1 / record.n
    return Check("probes", said, measured, "holds" if agree else "fails")


def _known_principle(manifest: PreferenceModelManifest) -> Principle | None:
    """Return the installed principle with the manifest's probes, None if there is none."""
    wanted = manifest.principle
    for name in CONSTITUTIONS.names():
        for principle in load_constitution(name).principles:
            if (principle.sha256(), principle.probes_sha256()) == (
                wanted.sha256,
                wanted.probes_sha256,
            ):
                return principle if principle.probes else None
    return None


def _accuracy(manifest: PreferenceModelManifest, scores: _Scores) -> Iterator[Check]:
    stated = [evaluation for evaluation in manifest.evaluations if evaluation.split == "test"]
    try:
        given = _labels(manifest)
    except MorlaifHubError as error:
        given, reason = None, " ".join(str(error).split())
    else:
        reason = "its labels are not on the Hub"
    if given is None:
        for evaluation in stated:
            yield Check(evaluation.metric, _evaluation(evaluation), reason, "not checked")
        return
    test = given.held_out
    score_a, score_b = scores.both("held-out pairs", test.comparisons)
    decided = test.probabilities != 0.5
    measured = {
        evaluation.metric: evaluation
        for evaluation in evaluate_pairs(
            [c for c, kept in zip(test.comparisons, decided, strict=True) if kept],
            (score_a - score_b)[decided],
            test.probabilities[decided],
            split="test",
            longer_is_better=longer_wins(given.decided.comparisons, given.decided.probabilities),
        )
    }
    for said in stated:
        seen = measured.get(said.metric)
        if seen is None:
            yield Check(said.metric, _evaluation(said), "not a metric of ours", "not checked")
            continue
        agree = said.n == seen.n and abs(said.value - seen.value) <= ACCURACY_TOLERANCE
        yield Check(
            said.metric, _evaluation(said), _evaluation(seen), "holds" if agree else "fails"
        )
    yield from _calibration(manifest, np.concatenate([score_a, score_b]))


def _calibration(manifest: PreferenceModelManifest, raw: Array) -> Iterator[Check]:
    said = manifest.calibration
    stated = f"mean {said.mean:.4f}, std {said.std:.4f}, n {said.n}"
    measured = f"mean {raw.mean():.4f}, std {raw.std():.4f}, n {len(raw)}"
    off = max(abs(said.mean - raw.mean()), abs(said.std - raw.std())) / said.std
    holds = off <= MOMENT_TOLERANCE and said.n == len(raw)
    yield Check("calibration", stated, measured, "holds" if holds else "fails")


def _labels(manifest: PreferenceModelManifest) -> Preferences | None:
    """Return the labels that a preference model was trained and measured on, None if not known.

    Raises:
        MorlaifHubError: If they cannot be loaded, or are not those that the manifest names.
    """
    dataset = manifest.dataset
    if dataset.repo_id is None:
        return None
    source = dataset.repo_id + (f"@{dataset.revision}" if dataset.revision else "")
    record = manifest.principle
    principle = _known_principle(manifest) or Principle(
        record.name, record.criterion, record.opposite, record.high_score, record.length
    )
    if manifest.training.labels == "human":
        return _human_labels(manifest, principle, source)
    feedback = FeedbackDataset.load(source)
    if feedback.reference.sha256 != dataset.sha256:
        raise DataError(
            f"{source} is not the data set that it was trained on: SHA-256 "
            f"{feedback.reference.sha256[:12]}, not {dataset.sha256[:12]}"
        )
    return feedback_preferences(principle, feedback)


def _human_labels(
    manifest: PreferenceModelManifest, principle: Principle, source: str
) -> Preferences:
    # Rows that cannot be read were left out of training as well; a set with others is another set.
    comparisons = read_comparisons(source, on_bad=lambda _message: None)
    return human_preferences(
        principle, comparisons, dataset=manifest.dataset, seed=manifest.training.seed
    )


def _same_weights(stated: str, measured: str, claim: str = "weights") -> Check:
    verdict: Verdict = "holds" if stated == measured else "fails"
    return Check(claim, f"SHA-256 {stated[:12]}", f"SHA-256 {measured[:12]}", verdict)


def _within(claim: str, tolerance: float, worst: float) -> Check:
    verdict: Verdict = "holds" if worst <= tolerance else "fails"
    return Check(claim, f"off by at most {tolerance:.2g}", f"off by {worst:.2g}", verdict)


def _near(claim: str, stated: float, measured: float, tolerance: float) -> Check:
    verdict: Verdict = "holds" if abs(stated - measured) <= tolerance else "fails"
    return Check(claim, f"{stated:+.3f}", f"{measured:+.3f}", verdict)


def _evaluation(evaluation: Evaluation) -> str:
    low, high = evaluation.interval
    return f"{evaluation.value:.3f} [{low:.3f}, {high:.3f}], n {evaluation.n}"
