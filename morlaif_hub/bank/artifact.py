"""A bank as an artifact: which preference models, how they are combined, and no weights."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.bank.bank import Member, PMBank
from morlaif_hub.errors import OptionError
from morlaif_hub.figures import correlation_matrix, png
from morlaif_hub.hub.artifact import seal, stage
from morlaif_hub.hub.manifest import (
    BankManifest,
    ObjectiveRecord,
    PreferenceModelManifest,
    WeightRecord,
    manifest_sha256,
)
from morlaif_hub.statistics import correlation


def objective_records(bank: PMBank, *, beside: Path) -> tuple[ObjectiveRecord, ...]:
    """Return which preference models a bank has, as a manifest in the folder `beside` names them.

    A local one is named by its path from there, so that a workspace can be moved as a whole.
    """
    return tuple(_record(member, beside) for member in bank.members)


def write_bank(
    bank: PMBank,
    folder: Path,
    *,
    scores: ArrayLike,
    weights: Mapping[str, float],
    scalarizer: str = "linear",
) -> BankManifest:
    """Write a bank's artifact.

    Args:
        bank: Of preference models with manifests.
        folder: Replaced if it exists.
        scores: Calibrated scores of some responses, for the correlations between objectives;
            shape (responses, objectives).
        weights: One per objective.
        scalarizer: A name in `SCALARIZERS`.
    """
    names = bank.objectives
    columns = np.asarray(scores, float).T
    matrix = np.array([[correlation(a, b) or 0.0 for a in columns] for b in columns])
    with stage(folder) as staging:
        (staging / "figures").mkdir()
        figure = correlation_matrix(names, matrix)
        (staging / "figures/correlations.png").write_bytes(png(figure))
        manifest = BankManifest(
            license="apache-2.0",
            name=folder.name,
            objectives=objective_records(bank, beside=folder),
            scalarizer=scalarizer,
            weights=tuple(
                WeightRecord(objective=name, value=float(weights[name]), interval=None)
                for name in names
            ),
            golden=tuple(_manifest(member).golden for member in bank.members),
            correlations=tuple(tuple(row) for row in matrix.tolist()),
            versions={"morlaif-hub": version("morlaif-hub")},
        )
        return seal(staging, manifest)


def _record(member: Member, beside: Path) -> ObjectiveRecord:
    manifest = _manifest(member)
    validation = manifest.validation
    return ObjectiveRecord(
        name=member.objective,
        repo_id=member.repo_id or os.path.relpath(member.path, beside.resolve()),
        revision=member.revision,
        sha256=manifest_sha256(member.path),
        high_score=manifest.principle.high_score,
        verdict=validation.verdict if validation else None,
    )


def _manifest(member: Member) -> PreferenceModelManifest:
    if member.manifest is None:
        raise OptionError(
            f"{member.objective} ({member.source}) has no manifest, so a bank cannot pin it; "
            "publish it as a preference model first"
        )
    return member.manifest
