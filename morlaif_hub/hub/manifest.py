"""Manifests: what an artifact says about itself, as validated plain fields.

Every artifact is a folder with a `morlaif.json`. It is read as data from a stranger: an unknown
key, a wrong type, a control character or a file name that leaves the folder is an error that
names the key. The card (`README.md`) is rendered from the manifest alone.

Every kind has `repo_id`, the repository that it was published as (null until it is), and `files`.
"""

import hashlib
import json
import unicodedata
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from morlaif_hub.errors import ManifestError

MANIFEST_NAME = "morlaif.json"
SCHEMA_VERSION = 1
LARGEST_MANIFEST = 4 << 20
"""Bytes; those of real artifacts have some 20,000."""

Verdict = Literal["fit", "unproven", "wrong way"]
Form = Literal["lora", "full", "probe"]
Split = Literal["train", "test"]
Kind = Literal["preference-model", "feedback-dataset", "bank", "policy", "base"]


def _relative_path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or {"..", "."} & set(path.split("/")):
        raise ValueError(f"file name {path!r} must stay inside the artifact")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(_relative_path)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
License = Annotated[str, Field(min_length=1)]
"""An SPDX identifier, such as `Apache-2.0`, or a name that the Hub knows, such as `gemma`."""
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bounds = tuple[Finite, Finite]
"""Low and high end of a 95 % interval."""

_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def _plain(cls: type[_T]) -> type[_T]:
    config = ConfigDict(extra="forbid", strict=True)
    return cast(type[_T], dataclass(cls, frozen=True, kw_only=True, config=config))


@_plain
class FileEntry:
    """One file of an artifact, checked at every load. `path` is relative, `size` in bytes."""

    path: RelativePath
    size: Count
    sha256: Sha256


@_plain
class BaseIdentity:
    """Which weights a model is, whatever it is called.

    Attributes:
        repo_id: The Hub repository that holds them; null until there is one.
        revision: Its commit; null for a local folder.
        weights_sha256: Hash over the names, shapes, types and bytes of all tensors; the same for
            one file and for shards.
        source: `hub`, `local`, or `gguf:<sha256>` for weights dequantised from that file.
    """

    repo_id: str | None
    revision: str | None
    weights_sha256: Sha256
    source: Annotated[str, Field(pattern=r"^(hub|local|gguf:[0-9a-f]{64})$")]


@_plain
class PrincipleRecord:
    """A principle as it was when the artifact was made."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
    criterion: str
    opposite: str
    high_score: str
    length: Literal["none", "shorter", "longer"]
    sha256: Sha256
    probes: Count
    probes_sha256: Sha256


@_plain
class PartRecord:
    """Accuracy on one part of the probes: the better side longer, shorter or equally long."""

    part: Literal["longer", "shorter", "equal"]
    accuracy: Probability
    n: Count


@_plain
class ValidationRecord:
    """Accuracy on a principle's probes and what follows from it.

    Attributes:
        verdict: `fit` if the Wilson 95 % interval lies above 0.5, `wrong way` if below, else
            `unproven`.
        accuracy: Share of probes whose better side is preferred; ties count one half.
        interval: Wilson 95 % interval of the accuracy.
        n: Number of probes.
        parts: The accuracy by whether the better side is longer, shorter or equally long.
        first_share: Share of all answers, over both orders, that prefer the response shown first;
            null for what has no order.
        length_correlation: Correlation, in [-1, 1], of the preference with the difference in
            words; null where it is undefined.
    """

    verdict: Verdict
    accuracy: Probability
    interval: Bounds
    n: Count
    parts: tuple[PartRecord, ...]
    first_share: Probability | None
    length_correlation: Finite | None


@_plain
class JudgeRecord:
    """Who labelled: the judge's spec, the base of a local one and the hash of its prompts."""

    spec: str
    base: BaseIdentity | None
    prompt_sha256: Sha256
    validated: bool
    validation: ValidationRecord | None


@_plain
class RateRecord:
    """A rate with its 95 % interval, which resamples prompts, and the number of pairs."""

    value: Finite
    interval: Bounds
    n: Count


@_plain
class BiasReport:
    """How much a judge's answers depended on the order of the responses.

    Attributes:
        position_bias: P(the response shown first is preferred) - 0.5, in [-0.5, 0.5].
        flip_rate: Share of pairs whose preferred response changes with the order.
        tie_rate: Share of pairs with a debiased probability of exactly one half.
        mean_entropy: Mean entropy of the debiased probabilities, in bits, in [0, 1].
        human_agreement: Share of pairs, of those with a human choice, on which the judge agrees;
            null if there are none.
    """

    position_bias: RateRecord
    flip_rate: RateRecord
    tie_rate: Probability
    mean_entropy: Probability
    human_agreement: RateRecord | None


@_plain
class SourceRecord:
    """Where the comparisons came from: a repo id or local name, its commit, and their hash."""

    name: str
    revision: str | None
    sha256: Sha256


@_plain
class InputFormat:
    """How a prompt and a response become tokens.

    Attributes:
        kind: `chat` for the tokenizer's chat template, `text` for prompt and response joined.
        append_eos: Whether the response is closed: in a chat by the template's own end of turn,
            as TRL's trainers do, in plain text by the end-of-sequence token. Left open, the score
            is read at the response's last token.
        max_length: In tokens; longer inputs are cut on the left.
    """

    kind: Literal["chat", "text"]
    append_eos: bool
    max_length: Annotated[int, Field(gt=0)]


@_plain
class DatasetReference:
    """The feedback a model was trained on; repo and commit are null until it is pushed."""

    repo_id: str | None
    revision: str | None
    sha256: Sha256


@_plain
class TrainingRecord:
    """How a model was trained.

    `kept` is `trained`, or `start` when training ended worse on held-out pairs than its start. The
    accuracies are on those pairs; null where there were none.
    """

    labels: Literal["feedback", "human"]
    seed: int
    layers: tuple[int, ...]
    rank: Count
    alpha: Finite
    learning_rate: Finite
    epochs: Finite
    batch_size: Count
    pairs: Count
    validation_pairs: Count
    start_accuracy: Probability | None
    trained_accuracy: Probability | None
    kept: Literal["trained", "start"]


@_plain
class Calibration:
    """What makes scores comparable: calibrated score = (raw - mean) / std.

    `sigmoid((raw_a - raw_b) / temperature)` is the probability that a is preferred.
    """

    mean: Finite
    std: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    n: Count


@_plain
class Evaluation:
    """One figure on one split, with the same figure for a rule that only sees length.

    `length_baseline` is null where it makes no sense. The interval resamples prompts.
    """

    split: Literal["train", "validation", "test"]
    metric: str
    value: Finite
    interval: Bounds
    n: Count
    length_baseline: Finite | None


@_plain
class GoldenScores:
    """Raw scores of fixed texts, re-computed to show that a copy works.

    Scores are fp32 on CPU; `tolerance` is absolute, in units of the raw score.
    """

    scores: tuple[Finite, ...]
    tolerance: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


@_plain
class PreferenceModelManifest:
    """A model that scores responses on one principle."""

    license: License
    form: Form
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


@_plain
class FeedbackManifest:
    """The verdicts of one principle.

    `orders` is 2 when each pair was judged in both orders (a judge without order counts as both),
    1 when in one only. `calls` and `cost_usd` are what collecting it took, cached answers apart.
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
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["feedback-dataset"] = "feedback-dataset"
    schema_version: Literal[1] = 1


@_plain
class ObjectiveRecord:
    """One column of a bank: a preference model by repo id and commit, or by a local folder."""

    name: str
    repo_id: str
    revision: str | None
    sha256: Sha256
    high_score: str
    verdict: Verdict | None


@_plain
class WeightRecord:
    """The weight of one objective, with its 95 % interval where it was fitted."""

    objective: str
    value: Finite
    interval: Bounds | None


@_plain
class BankManifest:
    """Several preference models that score together. Holds no weights of models.

    A correlation is null where it is undefined, as with an objective whose scores are all equal.
    """

    license: License
    name: str
    objectives: tuple[ObjectiveRecord, ...]
    scalarizer: str
    weights: tuple[WeightRecord, ...]
    golden: tuple[GoldenScores, ...]
    correlations: tuple[tuple[Finite | None, ...], ...]
    versions: dict[str, str]
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["bank"] = "bank"
    schema_version: Literal[1] = 1


@_plain
class PolicyCheckpoint:
    """What was measured on held-out prompts at one step of training."""

    step: Count
    reward: Finite
    objectives: dict[str, Finite]
    kl: Finite
    words: Finite
    finished: Probability


@_plain
class PolicyManifest:
    """A language model trained against a bank.

    Attributes:
        steps: The training step whose weights are kept.
        stopped_by: What ended the training.
        kl: Mean per token to the reference policy, in nats, of the kept weights.
        curve: All checks on held-out prompts, the first before training. One above `max_kl` may
            follow the kept one.
        delta_interval: 95 % interval, over prompts, of the kept reward minus the first.
    """

    license: License
    name: str
    form: Literal["lora", "full"]
    base: BaseIdentity
    algorithm: str
    objectives: tuple[ObjectiveRecord, ...]
    scalarizer: str
    weights: tuple[WeightRecord, ...]
    seed: int
    steps: Count
    stopped_by: Literal["max_steps", "max_kl"]
    max_kl: Finite | None
    kl: Finite
    settings: dict[str, Finite | int | str | bool | None]
    curve: tuple[PolicyCheckpoint, ...]
    delta_interval: Bounds
    versions: dict[str, str]
    repo_id: str | None = None
    files: tuple[FileEntry, ...] = ()
    kind: Literal["policy"] = "policy"
    schema_version: Literal[1] = 1


@_plain
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
