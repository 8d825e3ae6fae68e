"""A bank as an artifact: which preference models, how they are combined, and no weights."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.members import Member
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
    name: str | None = None,
) -> BankManifest:
    """Write a bank's artifact.

    Args:
        bank: Of preference models with manifests, from the Hub or below the folder's parent.
        folder: Replaced if it exists.
        scores: Calibrated scores of some responses, for the correlations between objectives;
            shape (responses, objectives).
        weights: One per objective.
        scalarizer: A name in `SCALARIZERS`.
        name: The bank's; by default the folder's.

    Raises:
        OptionError: If a preference model has no manifest, or is where no bank may point to.
    """
    names = bank.objectives
    manifests = [_manifest(member) for member in bank.members]
    _check_reach(bank, folder.resolve().parent)
    matrix = _correlations(np.asarray(scores, float))
    with stage(folder) as staging:
        (staging / "figures").mkdir()
        # numpy reads None as NaN, which the figure shows as a dash.
        figure = correlation_matrix(names, np.array(matrix, float))
        (staging / "figures/correlations.png").write_bytes(png(figure))
        manifest = BankManifest(
            license=_common_license(manifests),
            name=name or folder.name,
            objectives=objective_records(bank, beside=folder),
            scalarizer=scalarizer,
            weights=tuple(
                WeightRecord(objective=name, value=float(weights[name]), interval=None)
                for name in names
            ),
            golden=tuple(manifest.golden for manifest in manifests),
            correlations=matrix,
            versions={"morlaif-hub": version("morlaif-hub")},
        )
        return seal(staging, manifest)


def _check_reach(bank: PMBank, workspace: Path) -> None:
    for member in bank.members:
        if member.repo_id is None and workspace not in member.path.parents:
            raise OptionError(
                f"{member.objective} ({member.source}) is not below {workspace}, so a bank there "
                "cannot name it; copy it there, or load it from the Hub"
            )


def _correlations(scores: NDArray[np.float64]) -> tuple[tuple[float | None, ...], ...]:
    matrix = [[correlation(a, b) for a in scores.T] for b in scores.T]
    for i, row in enumerate(matrix):
        row[i] = None if row[i] is None else 1.0  # exactly, not up to rounding
    return tuple(tuple(row) for row in matrix)


def _common_license(manifests: Sequence[PreferenceModelManifest]) -> str:
    licenses = {manifest.license.lower(): manifest.license for manifest in manifests}
    return next(iter(licenses.values())) if len(licenses) == 1 else "other"


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
