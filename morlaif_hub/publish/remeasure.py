"""Measuring a preference model again: golden scores, probes, and accuracy on its own data."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from morlaif_hub.bank.bank import PMBank, golden_distance
from morlaif_hub.bank.golden import exact_products, golden_sequences
from morlaif_hub.comparisons import Comparison, read_comparisons
from morlaif_hub.errors import DataError, MorlaifHubError
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.hub.client import Progress
from morlaif_hub.hub.manifest import (
    Calibration,
    Evaluation,
    PreferenceModelManifest,
    ValidationRecord,
)
from morlaif_hub.judges.validation import probe_comparisons, probe_record
from morlaif_hub.preference_models.calibrate import (
    calibrate,
    evaluate_held_out,
    length_correlation,
)
from morlaif_hub.preference_models.preferences import (
    Preferences,
    feedback_preferences,
    human_preferences,
)
from morlaif_hub.principles import CONSTITUTIONS, Principle, load_constitution
from morlaif_hub.publish.checks import Check, Verdict, near, within
from morlaif_hub.sources import resolve_source, source_sha256
from morlaif_hub.statistics import validation_verdict, wilson_interval

Array = NDArray[np.float64]

ACCURACY_TOLERANCE = 0.005
"""How far an accuracy may be off: near-ties flip with another processor's rounding."""
INTERVAL_TOLERANCE = 0.02
"""How far an end of its interval may be off, which a few such pairs move more."""
MOMENT_TOLERANCE = 0.01
"""How far a calibration may be off: its mean and deviation in units of the deviation, its
temperature in units of itself; and how far a correlation."""


class Scores:
    """Raw scores of a bank on what manifests make claims about."""

    def __init__(self, bank: PMBank, tell: Progress) -> None:
        self._bank, self._tell = bank, tell

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
            self._tell(stage, done, total)

        scores = self._bank.score(
            [pair.prompt for pair in pairs for _ in range(2)],
            [text for pair in pairs for text in (pair.response_a, pair.response_b)],
            calibrated=False,
            progress=count,
        )
        self._tell(stage, total, total)  # equal texts are scored once
        numbers = scores[:, 0].double().numpy()
        return numbers[::2], numbers[1::2]


def golden_check(manifest: PreferenceModelManifest, scores: Scores) -> Check:
    """Return how far the golden scores are off here."""
    worst = golden_distance(manifest.golden, scores.golden()[:, 0])
    return within("golden scores", manifest.golden.tolerance, worst)


def probe_check(manifest: PreferenceModelManifest, scores: Scores) -> Check:
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
    holds = _agrees(stated, record)
    return Check("probes", said, measured, "holds" if holds else "fails")


def _agrees(stated: ValidationRecord, measured: ValidationRecord) -> bool:
    """Whether a stated result follows from itself, and is what was measured up to one probe.

    One probe may be a near-tie that another processor rounds to the other side.
    """
    interval = wilson_interval(stated.accuracy * stated.n, stated.n)
    follows = stated.verdict == validation_verdict(interval) and np.allclose(
        stated.interval, interval, atol=1e-6
    )
    near = abs(stated.accuracy - measured.accuracy) <= 1 / measured.n
    return bool(follows and near and stated.n == measured.n)


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


def accuracy_checks(manifest: PreferenceModelManifest, scores: Scores) -> Iterator[Check]:
    """Yield what is claimed of held-out pairs, measured again where the data can be loaded."""
    stated = [evaluation for evaluation in manifest.evaluations if evaluation.split == "test"]
    try:
        given = _labels(manifest)
    except MorlaifHubError as error:
        given, reason = None, " ".join(str(error).split())
    else:
        reason = "its labels are not on the Hub, at a commit"
    if given is None:
        for evaluation in stated:
            yield Check(evaluation.metric, _evaluation(evaluation), reason, "not checked")
        return
    test = given.held_out
    score_a, score_b = scores.both("held-out pairs", test.comparisons)
    measured = {e.metric: e for e in evaluate_held_out(given, score_a, score_b)}
    for said in stated:
        seen = measured.get(said.metric)
        if seen is None:
            yield Check(said.metric, _evaluation(said), "not a metric of ours", "not checked")
        else:
            verdict: Verdict = "holds" if _is_near(said, seen) else "fails"
            yield Check(said.metric, _evaluation(said), _evaluation(seen), verdict)
    yield _calibration(manifest.calibration, calibrate(score_a, score_b, test.probabilities))
    measured_r = length_correlation(test.comparisons, score_a - score_b)
    yield _length(manifest.length_correlation, measured_r)


def _length(said: float | None, seen: float | None) -> Check:
    if said is not None and seen is not None:
        return near("correlation with length", said, seen, MOMENT_TOLERANCE)
    stated, measured = ("undefined" if r is None else f"{r:+.3f}" for r in (said, seen))
    verdict: Verdict = "holds" if stated == measured else "fails"
    return Check("correlation with length", stated, measured, verdict)


def _is_near(said: Evaluation, seen: Evaluation) -> bool:
    """Whether two evaluations are the same up to near-ties."""
    baselines = (said.length_baseline, seen.length_baseline)
    if said.n != seen.n or (None in baselines and baselines[0] != baselines[1]):
        return False
    numbers = [
        (said.value, seen.value, ACCURACY_TOLERANCE),
        (baselines[0] or 0.0, baselines[1] or 0.0, ACCURACY_TOLERANCE),
        *((a, b, INTERVAL_TOLERANCE) for a, b in zip(said.interval, seen.interval, strict=True)),
    ]
    return all(abs(a - b) <= tolerance for a, b, tolerance in numbers)


def _calibration(said: Calibration, seen: Calibration) -> Check:
    off = max(abs(said.mean - seen.mean), abs(said.std - seen.std)) / said.std
    warmer = abs(said.temperature - seen.temperature) / seen.temperature
    holds = max(off, warmer) <= MOMENT_TOLERANCE and said.n == seen.n
    return Check("calibration", _moments(said), _moments(seen), "holds" if holds else "fails")


def _moments(calibration: Calibration) -> str:
    return (
        f"mean {calibration.mean:.4f}, std {calibration.std:.4f}, temperature "
        f"{calibration.temperature:.3f}, n {calibration.n}"
    )


def _labels(manifest: PreferenceModelManifest) -> Preferences | None:
    """Return the labels that a preference model was trained and measured on, None if not known.

    Raises:
        MorlaifHubError: If they cannot be loaded, or are not those that the manifest names.
    """
    dataset = manifest.dataset
    if dataset.repo_id is None or dataset.revision is None:
        return None
    source = f"{dataset.repo_id}@{dataset.revision}"
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
    found = resolve_source(source)
    if (measured := source_sha256(found)) != manifest.dataset.sha256:
        raise DataError(
            f"{source} is not the data set that it was trained on: SHA-256 {measured[:12]}, not "
            f"{manifest.dataset.sha256[:12]}"
        )
    # Rows that cannot be read were left out of training as well.
    comparisons = read_comparisons(source, on_bad=lambda _message: None)
    return human_preferences(
        principle, comparisons, dataset=manifest.dataset, seed=manifest.training.seed
    )


def _evaluation(evaluation: Evaluation) -> str:
    low, high = evaluation.interval
    baseline = evaluation.length_baseline
    by_length = "" if baseline is None else f", by length {baseline:.3f}"
    return f"{evaluation.value:.3f} [{low:.3f}, {high:.3f}], n {evaluation.n}{by_length}"
