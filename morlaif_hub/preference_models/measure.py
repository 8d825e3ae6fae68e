"""Scoring finished preference models in float32 and writing down what they are worth.

What a manifest says of a preference model is measured here, by the same engine that a bank uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from morlaif_hub.bank.adapters import AdapterFiles, check_adapter
from morlaif_hub.bank.classifier import load_base, load_classifier
from morlaif_hub.bank.engine import Engine
from morlaif_hub.bank.golden import golden_sequences
from morlaif_hub.bank.probes import check_probe
from morlaif_hub.comparisons import Comparison
from morlaif_hub.figures import calibration_curve, png, score_histogram
from morlaif_hub.hub.artifact import FIGURES_FOLDER, seal
from morlaif_hub.hub.manifest import (
    BaseIdentity,
    Form,
    GoldenScores,
    PreferenceModelManifest,
    ProbeRecord,
    TrainingRecord,
    ValidationRecord,
)
from morlaif_hub.judges.validation import probe_comparisons, probe_record
from morlaif_hub.models.formats import Encoder, Text
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.preference_models.calibrate import (
    calibrate,
    evaluate_held_out,
    length_correlation,
)
from morlaif_hub.preference_models.preferences import Preferences
from morlaif_hub.statistics import sigmoid

Array = NDArray[np.float64]
# Of the calibration's standard deviation. On the same weights, threads, batches and kernels (those
# of older CPUs too) moved the scores by at most 1.3e-5; a base rounded to bfloat16 by at least
# 1.4e-2, a rounded adapter by 7.5e-4. Measured by benchmarks/golden.py; see docs/golden.md.
GOLDEN_TOLERANCE = 0.0005
FEWEST_ON_A_CURVE = 50  # pairs; with fewer, the intervals of a calibration curve say nothing


@dataclass(frozen=True)
class RawScores:
    """Raw float32 scores of every text that is measured.

    Attributes:
        rows: By text, shape (preference models,).
        golden: Of the golden texts, shape (texts, preference models).
        encoder: What the texts were read with.
    """

    rows: dict[Text, Array]
    golden: Array
    encoder: Encoder

    def pairs(self, comparisons: Sequence[Comparison], column: int) -> tuple[Array, Array]:
        """Return one preference model's scores of responses A and B, each shape (pairs,)."""
        both = [self.encoder.texts(c) for c in comparisons]
        scores = np.array([[self.rows[text][column] for text in pair] for pair in both])
        return scores[:, 0], scores[:, 1]


@dataclass(frozen=True)
class Made:
    """A preference model's weights, as training left them.

    Attributes:
        form: What they are.
        folder: Holds their files.
        training: How they were made.
        probe: What a probe reads; None for other forms.
    """

    form: Form
    folder: Path
    training: TrainingRecord
    probe: ProbeRecord | None


def score_made(
    preferences: Sequence[Preferences],
    made: Sequence[Made],
    *,
    base: ModelFolder,
    encoder: Encoder,
    progress: Callable[[int, int], None],
) -> RawScores:
    """Return all preference models' scores of all held-out pairs, principles' probes, golden texts.

    Args:
        preferences: What was trained on, one set per preference model.
        made: All of one form, in the same order.
        base: What they were made of.
        encoder: How they read text.
        progress: Told how many different texts are scored, and of how many.
    """
    measured = [
        c
        for given in preferences
        for c in (*given.held_out.comparisons, *probe_comparisons(given.principle))
    ]
    texts = list(dict.fromkeys(text for c in measured for text in encoder.texts(c)))
    prompts, responses = golden_sequences()
    golden = [encoder.text(p, r) for p, r in zip(prompts, responses, strict=True)]
    wanted = [*texts, *golden]
    engines = _engines(made, base=base, pad=encoder.tokenizer.pad_token_id)
    total = len(set(wanted)) * len(engines)
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(min(done, total), total)

    columns = []
    for load in engines:
        engine = load()
        starts = [text.start for text in wanted] if engine.takes_starts else None
        columns.append(engine.score([text.ids for text in wanted], starts, progress=tell))
    scores = torch.cat(columns, dim=1).double().numpy()
    rows = dict(zip(texts, scores[: len(texts)], strict=True))
    return RawScores(rows, scores[len(texts) :], encoder)


def _engines(made: Sequence[Made], *, base: ModelFolder, pad: int) -> list[Callable[[], Engine]]:
    """Return what loads an engine for all of one form, or one for each full model."""
    if made[0].form == "full":
        return [partial(_full_engine, one.folder, pad) for one in made]
    probes = {
        str(i): check_probe(one.folder, str(one.folder), one.probe)
        for i, one in enumerate(made)
        if one.probe is not None
    }
    adapters: dict[str, AdapterFiles] = {}
    if not probes:
        adapters = {str(one.folder): check_adapter(one.folder, str(one.folder)) for one in made}
    load = load_base if probes else load_classifier
    return [
        lambda: Engine(
            load(base.path, dtype=torch.float32, pad_token_id=pad),
            pad_token_id=pad,
            adapters=adapters,
            probes=probes,
        )
    ]


def _full_engine(folder: Path, pad: int) -> Engine:
    model = load_classifier(folder, dtype=torch.float32, pad_token_id=pad)
    return Engine(model, pad_token_id=pad, adapters={})


def write_preference_model(
    given: Preferences,
    folder: Path,
    made: Made,
    *,
    scores: RawScores,
    column: int,
    base: BaseIdentity,
) -> PreferenceModelManifest:
    """Complete a folder that holds a preference model's weights: figures, manifest and card.

    Args:
        given: What was trained on.
        folder: Where the weights are.
        made: What they are.
        scores: From `score_made`.
        column: The preference model's place there.
        base: The identity of its base.
    """
    test = given.held_out
    score_a, score_b = scores.pairs(test.comparisons, column)
    calibration = calibrate(score_a, score_b, test.probabilities)
    decided = test.probabilities != 0.5
    differences = (score_a - score_b)[decided]
    figures = folder / FIGURES_FOLDER
    figures.mkdir()
    _draw_scores(figures, np.concatenate([score_a, score_b]), title=given.principle.name)
    _draw_calibration(figures, differences / calibration.temperature, test.probabilities[decided])
    manifest = PreferenceModelManifest(
        license=given.license,
        form=made.form,
        probe=made.probe,
        principle=given.principle.record(),
        base=base,
        input_format=scores.encoder.input_format,
        dataset=given.dataset,
        judge=given.judge,
        training=made.training,
        calibration=calibration,
        validation=_validation(given, scores, column),
        evaluations=evaluate_held_out(given, score_a, score_b),
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
