"""Manifests: what an artifact says about itself, as validated plain fields.

Every artifact is a folder with a `morlaif.json`. It is read as data from a stranger: an unknown
key, a wrong type, a control character or a file name that leaves the folder is an error that
names the key. The card (`README.md`) is rendered from the manifest alone.

Every kind has `repo_id`, the repository that it was published as (null until it is), and `files`.
The records that they are made of are in `records`, and can be imported from here as well.
"""

import hashlib
import json
import unicodedata
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from morlaif_hub.errors import ManifestError
from morlaif_hub.hub.feedback_records import (
    BiasReport,
    ChoiceRecord,
    JudgeRecord,
    PartRecord,
    UnansweredRecord,
    ValidationRecord,
)
from morlaif_hub.hub.policy_records import HeldOutRecord, LossRecord, SftRecord
from morlaif_hub.hub.records import (
    BaseIdentity,
    Bounds,
    Calibration,
    Count,
    DatasetReference,
    Evaluation,
    FileEntry,
    Finite,
    Form,
    GoldenScores,
    GradientRecord,
    HeadRecord,
    InputFormat,
    Kind,
    License,
    ObjectiveRecord,
    PolicyCheckpoint,
    Pooling,
    PrincipleRecord,
    Probability,
    ProbeRecord,
    RateRecord,
    RelativePath,
    Sha256,
    SourceRecord,
    Split,
    TrainingRecord,
    Verdict,
    WeightFitRecord,
    WeightRecord,
    plain_record,
)

__all__ = [
    "LARGEST_MANIFEST",
    "MANIFESTS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "BankManifest",
    "BaseIdentity",
    "BaseManifest",
    "BiasReport",
    "Bounds",
    "Calibration",
    "ChoiceRecord",
    "Count",
    "DatasetReference",
    "Evaluation",
    "FeedbackManifest",
    "FileEntry",
    "Finite",
    "Form",
    "GoldenScores",
    "GradientRecord",
    "HeadRecord",
    "HeldOutRecord",
    "InputFormat",
    "JudgeRecord",
    "Kind",
    "License",
    "LossRecord",
    "Manifest",
    "ObjectiveRecord",
    "PartRecord",
    "PolicyCheckpoint",
    "PolicyManifest",
    "Pooling",
    "PreferenceModelManifest",
    "PrincipleRecord",
    "Probability",
    "ProbeRecord",
    "RateRecord",
    "RelativePath",
    "SftRecord",
    "Sha256",
    "SourceRecord",
    "Split",
    "TrainingRecord",
    "UnansweredRecord",
    "ValidationRecord",
    "Verdict",
    "WeightFitRecord",
    "WeightRecord",
    "dump_manifest",
    "manifest_kind",
    "manifest_sha256",
    "parse_manifest",
    "read_manifest",
    "to_plain",
]

MANIFEST_NAME = "morlaif.json"
SCHEMA_VERSION = 1
LARGEST_MANIFEST = 4 << 20
"""Bytes; those of real artifacts have some 20,000."""


@plain_record
class PreferenceModelManifest:
    """A model that scores responses on one principle.

    `probe` says what a probe reads; null for the other forms.
    """

    license: License
    form: Form
    probe: ProbeRecord | None
    principle: PrincipleRecord
    base: BaseIdentity
    input_format: InputFormat
    dataset: DatasetReference
    judge: JudgeRecord | None
    training: TrainingRecord
    calibration: Calibration
    validation: ValidationRecord | None
    evaluations: tuple[Evaluation, ...]
    length_correlation: Finite | None
    golden: GoldenScores
    versions: dict[str, str]
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["preference-model"] = "preference-model"
    schema_version: Literal[1] = 1

    def __post_init__(self) -> None:
        if (self.probe is None) == (self.form == "probe"):
            wanted = "wanted" if self.probe is None else "not wanted"
            raise ValueError(f"probe is {wanted} for a preference model of the form {self.form!r}")


@plain_record
class FeedbackManifest:
    """The verdicts of one principle.

    `orders` is 2 when each pair was judged in both orders (a judge without order counts as both),
    1 when in one only. `calls`, `judge_tokens` and `cost_usd` are what it took, cached answers
    apart; `judge_tokens` is null where no server counted them.
    `unanswered` counts the pairs of the source that are left out since the judge gave no verdict
    on them, by the reason.
    """

    license: License
    principle: PrincipleRecord
    source: SourceRecord
    judge: JudgeRecord
    orders: Literal[1, 2]
    train_pairs: Count
    test_pairs: Count
    train_prompts: Count
    test_prompts: Count
    bias: BiasReport
    calls: Count
    cost_usd: Finite
    versions: dict[str, str]
    judge_tokens: Count | None = None
    unanswered: tuple[UnansweredRecord, ...] = ()
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["feedback-dataset"] = "feedback-dataset"
    schema_version: Literal[1] = 1


@plain_record
class BankManifest:
    """Several preference models that score together. Holds no weights of models.

    A correlation is null where it is undefined, as with an objective whose scores are all equal.
    `weights_fit` is null where the weights of the objectives were chosen and not fitted.
    """

    license: License
    name: str
    objectives: tuple[ObjectiveRecord, ...]
    scalarizer: str
    weights: tuple[WeightRecord, ...]
    golden: tuple[GoldenScores, ...]
    correlations: tuple[tuple[Finite | None, ...], ...]
    weights_fit: WeightFitRecord | None
    versions: dict[str, str]
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["bank"] = "bank"
    schema_version: Literal[1] = 1


@plain_record
class PolicyManifest:
    """A language model trained against a bank, or on dialogues.

    Attributes:
        steps: The training step whose weights are kept.
        stopped_by: What ended the training.
        kl: Mean per token to the reference policy, in nats, of the kept weights.
        curve: All checks on held-out prompts, the first before training. One above `max_kl` may
            follow the kept one.
        delta_interval: 95 % interval, over prompts, of the kept reward minus the first.
        sft: How it learnt from dialogues; then it has no objectives, weights and curve, and no
            scalarizer, KL and interval of a reward. Null for a policy trained against a bank.
        watched: On which prompts it was measured, and what it cost. Null for one trained on
            dialogues, and where it was not recorded yet.
    """

    license: License
    name: str
    form: Literal["lora", "full"]
    base: BaseIdentity
    algorithm: str
    objectives: tuple[ObjectiveRecord, ...]
    scalarizer: str | None
    weights: tuple[WeightRecord, ...]
    seed: int
    steps: Count
    stopped_by: Literal["max_steps", "max_kl", "failure"]
    max_kl: Finite | None
    kl: Finite | None
    settings: dict[str, Finite | int | str | bool | None]
    curve: tuple[PolicyCheckpoint, ...]
    delta_interval: Bounds | None
    versions: dict[str, str]
    sft: SftRecord | None = None
    watched: HeldOutRecord | None = None
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["policy"] = "policy"
    schema_version: Literal[1] = 1


@plain_record
class BaseManifest:
    """A base model's files and which weights they are."""

    license: License
    base: BaseIdentity
    made_from: str
    versions: dict[str, str]
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = field(default=())
    kind: Literal["base"] = "base"
    schema_version: Literal[1] = 1


Manifest = PreferenceModelManifest | FeedbackManifest | BankManifest | PolicyManifest | BaseManifest
M = TypeVar("M", bound=Manifest)

MANIFESTS: dict[str, type[Any]] = {
    "preference-model": PreferenceModelManifest,
    "feedback-dataset": FeedbackManifest,
    "bank": BankManifest,
    "policy": PolicyManifest,
    "base": BaseManifest,
}


def dump_manifest(manifest: Manifest) -> str:
    """Return a manifest as indented JSON that ends in a line break."""
    return json.dumps(to_plain(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_plain(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as dictionaries and lists of plain values."""
    plain: dict[str, Any] = TypeAdapter(type(manifest)).dump_python(manifest, mode="json")
    return plain


def parse_manifest(text: str, expected: type[M], where: str) -> M:
    """Return the manifest in `text`.

    Args:
        text: JSON.
        expected: The class of manifest that is wanted.
        where: The file or repo, for errors.

    Raises:
        ManifestError: If it is not JSON, of another kind or version, has an unknown, missing or
            wrong field, or a control character; the message names the key.
    """
    try:
        plain = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise ManifestError(f"{where}: must be a JSON object, got {type(plain).__name__}")
    _check_kind(plain, expected, where)
    if "files" not in plain:  # it has a default for manifests in the making, never for read ones
        raise ManifestError(f"{where}: files: Field required")
    _refuse_control_characters(plain, where, "")
    try:
        return TypeAdapter(expected).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise ManifestError(f"{where}: {key}: {first['msg']}") from error


def read_manifest(folder: Path, expected: type[M], *, where: str | None = None) -> M:
    """Return the manifest of an artifact's folder, without checking its files.

    `where` is what errors call the folder.

    Raises:
        ManifestError: If there is none, or it is not valid; the message names the key.
    """
    path = folder / MANIFEST_NAME
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= LARGEST_MANIFEST else None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{where or folder}: no readable {MANIFEST_NAME}: {error}") from error
    if text is None:
        raise ManifestError(
            f"{where or folder}: {MANIFEST_NAME} has {size} bytes, over {LARGEST_MANIFEST}"
        )
    return parse_manifest(text, expected, f"{where or folder}/{MANIFEST_NAME}")


def manifest_sha256(folder: Path) -> str:
    """Return the hash of an artifact's manifest, and so of all files that it lists."""
    return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()


def manifest_kind(folder: Path) -> str | None:
    """Return the kind of artifact that a folder says it is; None if it has no readable manifest."""
    path = folder / MANIFEST_NAME
    try:
        plain = from_json(path.read_bytes()) if path.stat().st_size <= LARGEST_MANIFEST else None
    except (OSError, ValueError):
        return None
    return plain.get("kind") if isinstance(plain, dict) else None


def _check_kind(plain: dict[str, Any], expected: type[Any], where: str) -> None:
    version, kind = plain.get("schema_version"), plain.get("kind")
    if type(version) is not int or version != SCHEMA_VERSION:  # JSON's true equals 1 in Python
        raise ManifestError(
            f"{where}: schema_version {version!r} is not known here (known: {SCHEMA_VERSION}); "
            "a newer morlaif-hub may read it"
        )
    wanted = next(name for name, cls in MANIFESTS.items() if cls is expected)
    if kind != wanted:
        raise ManifestError(f"{where}: kind is {kind!r}, but a {wanted} is wanted")


_COMMANDS = ("Cc", "Cf", "Zl", "Zp")
_ALLOWED = "\n\t\u200c\u200d"
"""Line break and tab, and the two joiners that Persian, Hindi and many emoji are written with."""


def _refuse_control_characters(value: object, where: str, key: str) -> None:
    if isinstance(value, str):
        bad = [c for c in value if unicodedata.category(c) in _COMMANDS and c not in _ALLOWED]
        if bad:
            raise ManifestError(f"{where}: {key}: control character {bad[0]!r} is not allowed")
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_control_characters(name, where, f"{key}.{name!r}".lstrip("."))
            _refuse_control_characters(item, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_control_characters(item, where, f"{key}[{i}]")
