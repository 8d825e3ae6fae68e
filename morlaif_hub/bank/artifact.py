"""A bank as an artifact: which preference models, how they are combined, and no weights."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.members import Member
from morlaif_hub.errors import OptionError
from morlaif_hub.figures import correlation_matrix, png, weight_bars
from morlaif_hub.hub.artifact import seal, stage
from morlaif_hub.hub.manifest import (
    BankManifest,
    ObjectiveRecord,
    PreferenceModelManifest,
    WeightFitRecord,
    WeightRecord,
    manifest_sha256,
)
from morlaif_hub.statistics import correlation


class FittedWeights(NamedTuple):
    """Weights with their intervals, one per objective, and what they were fitted on."""

    records: tuple[WeightRecord, ...]
    fit: WeightFitRecord


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
    weights: Mapping[str, float] | FittedWeights,
    scalarizer: str = "linear",
    name: str | None = None,
) -> BankManifest:
    """Write a bank's artifact.

    Args:
        bank: Of preference models with manifests, from the Hub or below the folder's parent.
        folder: Replaced if it exists.
        scores: Calibrated scores of some responses, for the correlations between objectives;
            shape (responses, objectives).
        weights: One per objective. Fitted ones are shown with their intervals, in a figure too.
        scalarizer: A name in `SCALARIZERS`.
        name: The bank's; by default the folder's.

    Raises:
        OptionError: If a preference model has no manifest, or is where no bank may point to.
    """
    names = bank.objectives
    manifests = [_manifest(member) for member in bank.members]
    check_pinnable(bank, folder)
    fitted = weights if isinstance(weights, FittedWeights) else None
    matrix = _correlations(np.asarray(scores, float))
    with stage(folder) as staging:
        (staging / "figures").mkdir()
        # numpy reads None as NaN, which the figure shows as a dash.
        figure = correlation_matrix(names, np.array(matrix, float))
        (staging / "figures/correlations.png").write_bytes(png(figure))
        records = _weight_records(names, weights)
        if fitted is not None:
            (staging / "figures/weights.png").write_bytes(png(_weights_figure(records)))
        manifest = BankManifest(
            license=_common_license(manifests),
            name=name or folder.name,
            objectives=objective_records(bank, beside=folder),
            scalarizer=scalarizer,
            weights=records,
            golden=tuple(manifest.golden for manifest in manifests),
            correlations=matrix,
            weights_fit=fitted.fit if fitted else None,
            versions={"morlaif-hub": version("morlaif-hub")},
        )
        return seal(staging, manifest)


def check_pinnable(bank: PMBank, folder: Path) -> None:
    """Check that a bank's artifact in a folder could name all of its preference models.

    Raises:
        OptionError: If one has no manifest, or is neither from the Hub nor below the folder's
            parent.
    """
    workspace = folder.resolve().parent
    for member in bank.members:
        _manifest(member)
        if member.repo_id is None and workspace not in member.path.parents:
            raise OptionError(
                f"{member.objective} ({member.source}) is not below {workspace}, so a bank there "
                "cannot name it; copy it there, or load it from the Hub"
            )


def _weight_records(
    names: Sequence[str], weights: Mapping[str, float] | FittedWeights
) -> tuple[WeightRecord, ...]:
    if isinstance(weights, FittedWeights):
        by_name = {record.objective: record for record in weights.records}
        return tuple(by_name[name] for name in names)
    return tuple(
        WeightRecord(objective=name, value=float(weights[name]), interval=None) for name in names
    )


def _weights_figure(records: Sequence[WeightRecord]) -> Figure:
    names, values = [r.objective for r in records], [r.value for r in records]
    return weight_bars(names, values, [r.interval or (r.value, r.value) for r in records])


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
