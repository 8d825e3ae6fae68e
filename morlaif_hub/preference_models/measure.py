"""Scoring finished adapters in float32 and writing down what they are worth.

What a manifest says of a preference model is measured here, by the same engine that a bank uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from morlaif_hub.bank.adapters import check_adapter
from morlaif_hub.bank.classifier import load_classifier
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.comparisons import Comparison
from morlaif_hub.figures import calibration_curve, png, score_histogram
from morlaif_hub.hub.artifact import FIGURES_FOLDER, seal
from morlaif_hub.hub.manifest import (
    BaseIdentity,
    GoldenScores,
    PreferenceModelManifest,
    TrainingRecord,
    ValidationRecord,
)
from morlaif_hub.judges.validation import probe_comparisons, probe_record
from morlaif_hub.models.formats import Encoder
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.preference_models.calibrate import (
    calibrate,
    evaluate_pairs,
    length_correlation,
    longer_wins,
)
from morlaif_hub.preference_models.preferences import Preferences
from morlaif_hub.statistics import sigmoid

Array = NDArray[np.float64]
Ids = tuple[int, ...]
# Of the calibration's standard deviation. On the same weights, threads, batches and kernels (those
# of older CPUs too) moved the scores by at most 1.3e-5; a base rounded to bfloat16 by at least
# 1.4e-2, a rounded adapter by 7.5e-4. Measured by benchmarks/golden.py; see docs/golden.md.
GOLDEN_TOLERANCE = 0.0005
FEWEST_ON_A_CURVE = 50  # pairs; with fewer, the intervals of a calibration curve say nothing


@dataclass(frozen=True)
class RawScores:
    """Raw float32 scores of every text that is measured.

    Attributes:
        rows: By token ids, shape (preference models,).
        golden: Of the golden texts, shape (texts, preference models).
        encoder: What the texts were read with.
    """

    rows: dict[Ids, Array]
    golden: Array
    encoder: Encoder

    def pairs(self, comparisons: Sequence[Comparison], column: int) -> tuple[Array, Array]:
        """Return one preference model's scores of responses A and B, each shape (pairs,)."""
        both = [self.encoder.both(c) for c in comparisons]
        scores = np.array([[self.rows[ids][column] for ids in pair] for pair in both])
        return scores[:, 0], scores[:, 1]


def score_adapters(
    preferences: Sequence[Preferences],
    folders: Sequence[Path],
    *,
    base: ModelFolder,
    encoder: Encoder,
    progress: Callable[[int, int], None],
) -> RawScores:
    """Return the scores, of all adapters, of all held-out pairs, probes and golden texts.

    Args:
        preferences: What was trained on, one set per adapter.
        folders: The adapters, in the same order.
        base: What they are adapters of.
        encoder: How they read text.
        progress: Told how many different texts are scored, and of how many.
    """
    pad = encoder.tokenizer.pad_token_id
    model = load_classifier(base.path, dtype=torch.float32, pad_token_id=pad)
    adapters = {str(folder): check_adapter(folder, str(folder)) for folder in folders}
    engine = Engine(model, pad_token_id=pad, adapters=adapters)
    measured = [
        c
        for given in preferences
        for c in (*given.held_out.comparisons, *probe_comparisons(given.principle))
    ]
    texts = list(dict.fromkeys(ids for c in measured for ids in encoder.both(c)))
    prompts, responses = golden_sequences()
    golden = [encoder.ids(p, r) for p, r in zip(prompts, responses, strict=True)]
    total = len({*texts, *golden})
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    scores = engine.score([*texts, *golden], progress=tell).double().numpy()
    rows = dict(zip(texts, scores[: len(texts)], strict=True))
    return RawScores(rows, scores[len(texts) :], encoder)


def write_preference_model(
    given: Preferences,
    folder: Path,
    *,
    scores: RawScores,
    column: int,
    base: BaseIdentity,
    training: TrainingRecord,
) -> PreferenceModelManifest:
    """Complete a folder that holds an adapter: figures, manifest and card.

    Args:
        given: What was trained on.
        folder: The adapter's.
        scores: From `score_adapters`.
        column: The adapter's place there.
        base: The identity of its base.
        training: How it was trained.
    """
    test = given.held_out
    score_a, score_b = scores.pairs(test.comparisons, column)
    calibration = calibrate(score_a, score_b, test.probabilities)
    decided = test.decided()
    decided_a, decided_b = scores.pairs(decided.comparisons, column)
    differences = decided_a - decided_b
    figures = folder / FIGURES_FOLDER
    figures.mkdir()
    _draw_scores(figures, np.concatenate([score_a, score_b]), title=given.principle.name)
    _draw_calibration(figures, differences / calibration.temperature, decided.probabilities)
    manifest = PreferenceModelManifest(
        license=given.license,
        form="lora",
        principle=given.principle.record(),
        base=base,
        input_format=scores.encoder.input_format,
        dataset=given.dataset,
        judge=given.judge,
        training=training,
        calibration=calibration,
        validation=_validation(given, scores, column),
        evaluations=evaluate_pairs(
            decided.comparisons,
            differences,
            decided.probabilities,
            split="test",
            longer_is_better=longer_wins(given.decided.comparisons, given.decided.probabilities),
        ),
        length_correlation=length_correlation(test.comparisons, score_a - score_b),
        golden=GoldenScores(
            scores=tuple(scores.golden[:, column].tolist()),
            tolerance=GOLDEN_TOLERANCE * calibration.std,
        ),
        versions={name: version(name) for name in ("morlaif-hub", "torch", "transformers", "peft")},
    )
    return seal(folder, manifest)


def _draw_scores(figures: Path, scores: Array, *, title: str) -> None:
    histogram = score_histogram(scores, title=title, unit="raw score")
    (figures / "scores.png").write_bytes(png(histogram))


def _draw_calibration(figures: Path, log_odds: Array, probabilities: Array) -> None:
    if len(probabilities) >= FEWEST_ON_A_CURVE:
        # Which response is called A is an accident: here it is the one with the higher score. A
        # judge's probabilities are drawn as they are, since the temperature was fitted to them.
        better = np.where(log_odds < 0, 1 - probabilities, probabilities)
        curve = calibration_curve(sigmoid(np.abs(log_odds)), better)
        (figures / "calibration.png").write_bytes(png(curve))


def _validation(given: Preferences, scores: RawScores, column: int) -> ValidationRecord | None:
    if not given.principle.probes:
        return None
    score_a, score_b = scores.pairs(probe_comparisons(given.principle), column)
    return probe_record(given.principle, score_a - score_b)
