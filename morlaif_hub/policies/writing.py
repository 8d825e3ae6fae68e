"""A trained policy as an artifact: weights, figures, manifest and card."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel

from morlaif_hub.bank.adapters import save_adapter
from morlaif_hub.bank.artifact import objective_records
from morlaif_hub.figures import learning_curves, png
from morlaif_hub.hub.artifact import seal, stage
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    BaseManifest,
    HeldOutRecord,
    PolicyCheckpoint,
    PolicyManifest,
    WeightRecord,
    manifest_kind,
    read_manifest,
)
from morlaif_hub.hub.policy_records import ChangeRecord, JudgedRecord
from morlaif_hub.models.language_model import ModelFolder
from morlaif_hub.policies.referee import Referee
from morlaif_hub.policies.settings import PolicySettings, RewardSpec
from morlaif_hub.policies.watch import Check, Found
from morlaif_hub.statistics import bootstrap_interval

PACKAGES = ("morlaif-hub", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class Story:
    """What a manifest tells of a training.

    Attributes:
        base: What was trained.
        reward: What for.
        settings: How; planned.
        found: What was found on held-out prompts.
        stopped_by: What ended it.
        counts: Prompts trained on, held out and left out.
        referee: The judge; None for none.
    """

    base: ModelFolder
    reward: RewardSpec
    settings: PolicySettings
    found: Found
    stopped_by: str
    counts: tuple[int, int, int]
    referee: Referee | None


def write_policy(model: Any, tokenizer: Any, story: Story, *, folder: Path) -> PolicyManifest:
    """Write a policy's artifact, in place of what is there.

    Args:
        model: A PEFT model, of which the LoRA is written, or a whole one.
        tokenizer: As it was loaded; written with a whole model.
        story: What the manifest tells.
        folder: Where it goes.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    with stage(folder) as staging:
        _write_weights(model, tokenizer, staging, story.base)
        _draw(story.found.curve, staging / "figures")
        return seal(staging, _manifest(story, folder))


def _write_weights(model: Any, tokenizer: Any, staging: Path, base: ModelFolder) -> None:
    if isinstance(model, PeftModel):
        save_adapter(model, staging, base.base)
    else:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def _manifest(story: Story, folder: Path) -> PolicyManifest:
    found, settings, reward = story.found, story.settings, story.reward
    change = found.kept.seen.change_from(found.first.seen)
    return PolicyManifest(
        license=_license(story.base.path),
        name=folder.name,
        form=settings.form,
        base=story.base.base,
        algorithm=settings.algorithm,
        objectives=objective_records(reward.bank, beside=folder),
        scalarizer=reward.scalarizer,
        weights=tuple(
            WeightRecord(objective=name, value=value, interval=None)
            for name, value in reward.named_weights.items()
        ),
        seed=settings.seed,
        steps=found.kept.step,
        stopped_by=story.stopped_by,  # type: ignore[arg-type]
        max_kl=settings.max_kl,
        kl=found.kept.seen.kl,
        settings=asdict(settings),
        curve=tuple(found.curve),
        delta_interval=(change.low, change.high),
        watched=_watched(story),
        versions={name: version(name) for name in PACKAGES},
    )


def _watched(story: Story) -> HeldOutRecord:
    first, kept = story.found.first, story.found.kept
    changes = kept.seen.changes_from(first.seen, story.reward.bank.objectives)
    trained_on, held_out, left_out = story.counts
    return HeldOutRecord(
        trained_on=trained_on,
        held_out=held_out,
        left_out=left_out,
        changes=tuple(
            ChangeRecord(objective=name, interval=(change.low, change.high))
            for name, change in changes.items()
        ),
        judge=_judged(story.referee, kept),
    )


def _judged(referee: Referee | None, kept: Check) -> JudgedRecord | None:
    if referee is None or kept.shares is None:
        return None
    answered = kept.shares.answered
    if not answered.any():
        return None
    values = kept.shares.values[answered]
    interval = bootstrap_interval(values, kept.seen.prompts[answered])
    judge = referee.judge
    return JudgedRecord(
        spec=judge.spec,
        weights_sha256=judge.base.weights_sha256 if judge.base else None,
        prompt_sha256=judge.prompt_sha256,
        principle=referee.principle.name,
        interval=(interval.low, interval.high),
        without_answer=int((~answered).sum()),
    )


def _license(base: Path) -> str:
    """Return the base's licence, which the policy inherits; `other` where it is not known."""
    kind = manifest_kind(base) if (base / MANIFEST_NAME).is_file() else None
    if kind == "policy":
        return read_manifest(base, PolicyManifest).license
    return read_manifest(base, BaseManifest).license if kind else "other"


def _draw(curve: Sequence[PolicyCheckpoint], folder: Path) -> None:
    folder.mkdir()
    steps = [point.step for point in curve]
    scores = {name: [point.objectives[name] for point in curve] for name in curve[0].objectives}
    shares = {
        "ended by itself": [point.finished for point in curve],
        "different answers": [point.distinct or 0.0 for point in curve],
    }
    if any(point.judged is not None for point in curve):
        none = float("nan")
        judged = [none if point.judged is None else point.judged for point in curve]
        shares["preferred by the judge"] = judged
    figures = {
        "objectives": (scores, "held-out score (calibrated)"),
        "kl": ({"KL": [point.kl for point in curve]}, "KL per token (nats)"),
        "answers": (shares, "share of held-out answers"),
        "words": ({"words": [point.words for point in curve]}, "words per answer"),
    }
    for name, (series, label) in figures.items():
        figure = learning_curves(steps, series, y_label=label)
        (folder / f"{name}.png").write_bytes(png(figure))
