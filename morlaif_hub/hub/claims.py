"""What a manifest claims, in the same few fields for every kind of artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from morlaif_hub.hub.manifest import (
    BankManifest,
    BaseIdentity,
    BaseManifest,
    Evaluation,
    FeedbackManifest,
    Manifest,
    PolicyManifest,
    PreferenceModelManifest,
    ValidationRecord,
    Verdict,
)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a manifest says: the word of its author, of which nothing has been checked.

    Attributes:
        principles: Names, of a bank or policy those of its objectives.
        high_scores: What a high score means, in words, by principle.
        verdicts: `fit`, `unproven`, `wrong way` or None (not validated), by principle.
        accuracy: On held-out pairs, with its interval, n and the length-only baseline; None for
            what has none.
        validation: Accuracy on the principle's probes; of a data set that of its judge.
        base: Which weights it is for, or is.
        judge: The spec of who labelled, or `people`.
        pairs: How many it learnt from, or holds.
        license: As in the manifest.
        published_as: The repository that it was made for; a copy may lie in another one.
    """

    principles: tuple[str, ...] = ()
    high_scores: Mapping[str, str]
    verdicts: Mapping[str, Verdict | None]
    accuracy: Evaluation | None = None
    validation: ValidationRecord | None = None
    base: BaseIdentity | None = None
    judge: str | None = None
    pairs: int | None = None
    license: str
    published_as: str | None


def claims_of(manifest: Manifest) -> Claims:
    """Return what a manifest of any kind claims."""
    about: dict[str, Any] = {"license": manifest.license, "published_as": manifest.repo_id}
    match manifest:
        case BaseManifest():
            return Claims(high_scores={}, verdicts={}, base=manifest.base, **about)
        case BankManifest() | PolicyManifest():
            objectives = manifest.objectives
            return Claims(
                principles=tuple(o.name for o in objectives),
                high_scores={o.name: o.high_score for o in objectives},
                verdicts={o.name: o.verdict for o in objectives},
                base=manifest.base if isinstance(manifest, PolicyManifest) else None,
                **about,
            )
        case PreferenceModelManifest():
            people = "people" if manifest.training.labels == "human" else None
            about["accuracy"] = _accuracy(manifest)
            about["base"] = manifest.base
            about["judge"] = manifest.judge.spec if manifest.judge else people
            about["pairs"] = manifest.training.pairs
            validation = manifest.validation
        case FeedbackManifest():
            about["judge"] = manifest.judge.spec
            about["pairs"] = manifest.train_pairs + manifest.test_pairs
            validation = manifest.judge.validation
    name = manifest.principle.name
    return Claims(
        principles=(name,),
        high_scores={name: manifest.principle.high_score},
        verdicts={name: validation.verdict if validation else None},
        validation=validation,
        **about,
    )


def _accuracy(manifest: PreferenceModelManifest) -> Evaluation | None:
    held_out = [e for e in manifest.evaluations if e.metric == "accuracy" and e.split != "train"]
    return min(held_out, key=lambda e: e.split, default=None)  # `test` before `validation`
