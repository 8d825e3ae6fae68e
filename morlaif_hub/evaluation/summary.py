"""What manifests say of feedback and preference models, as reports show it: plain values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from morlaif_hub.comparisons import Message
from morlaif_hub.hub.manifest import (
    Evaluation,
    FeedbackManifest,
    PreferenceModelManifest,
    ValidationRecord,
)
from morlaif_hub.policies.measure import HeldOut


def principle_summary(feedback: FeedbackManifest, model: PreferenceModelManifest) -> dict[str, Any]:
    """Return one principle's row of the quickstart: its feedback and its preference model."""
    accuracy = _evaluation(model, "accuracy")
    return {
        "pairs": feedback.train_pairs + feedback.test_pairs,
        "judge_position_bias": feedback.bias.position_bias.value,
        "judge_flip_rate": feedback.bias.flip_rate.value,
        "pm_accuracy": accuracy.value if accuracy else None,
        "pm_accuracy_interval": list(accuracy.interval) if accuracy else None,
        "length_baseline": accuracy.length_baseline if accuracy else None,
        "validation": model.validation.verdict if model.validation else None,
    }


def model_details(models: Sequence[PreferenceModelManifest]) -> dict[str, Any]:
    """Return, by principle, the validation of judge and model, and what length explains."""
    named = {model.principle.name: model for model in models}
    judges = {n: m.judge.validation if m.judge else None for n, m in named.items()}
    return {
        "judge_validation": {name: _validation(record) for name, record in judges.items()},
        "pm_validation": {name: _validation(model.validation) for name, model in named.items()},
        "equal_length_accuracy": {name: _on_equal_length(model) for name, model in named.items()},
        "length_correlation": {name: model.length_correlation for name, model in named.items()},
    }


def before_and_after(
    before: HeldOut, after: HeldOut, prompts: Sequence[Sequence[Message]]
) -> list[dict[str, str]]:
    """Return the first response to each of the first prompts, before and after training."""

    def first(seen: HeldOut, prompt: int) -> str:
        rows = np.flatnonzero(seen.prompts == prompt)
        return seen.texts[rows[0]] if len(rows) else ""

    return [
        {"prompt": prompt[-1]["content"], "before": first(before, i), "after": first(after, i)}
        for i, prompt in enumerate(prompts)
    ]


def _evaluation(model: PreferenceModelManifest, metric: str) -> Evaluation | None:
    return next((e for e in model.evaluations if e.metric == metric), None)


def _on_equal_length(model: PreferenceModelManifest) -> dict[str, Any] | None:
    found = _evaluation(model, "accuracy_equal_length")
    if found is None:
        return None
    return {
        "value": found.value,
        "interval": list(found.interval),
        "n": found.n,
        "length_baseline": found.length_baseline,
    }


def _validation(record: ValidationRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "verdict": record.verdict,
        "accuracy": record.accuracy,
        "interval": list(record.interval),
        "n": record.n,
        "parts": [asdict(part) for part in record.parts],
    }
