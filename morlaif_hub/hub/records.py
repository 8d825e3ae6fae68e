"""The records that manifests are made of: validated plain fields, small and without behaviour.

An unknown key, a missing one and a value of the wrong type are errors that name the key.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

Verdict = Literal["fit", "unproven", "wrong way"]
Form = Literal["lora", "full", "probe"]
Pooling = Literal["last", "mean", "last+mean"]
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
def plain_record(cls: type[_T]) -> type[_T]:
    """Make a class a record: frozen, by keyword only, and strict about its fields."""
    config = ConfigDict(extra="forbid", strict=True)
    return cast(type[_T], dataclass(cls, frozen=True, kw_only=True, config=config))


@plain_record
class FileEntry:
    """One file of an artifact, checked at every load. `path` is relative, `size` in bytes."""

    path: RelativePath
    size: Count
    sha256: Sha256


@plain_record
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


@plain_record
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


@plain_record
class RateRecord:
    """A rate with its 95 % interval, which resamples prompts, and the number of pairs."""

    value: Finite
    interval: Bounds
    n: Count


@plain_record
class SourceRecord:
    """Where the comparisons came from: a repo id or local name, its commit, and their hash."""

    name: str
    revision: str | None
    sha256: Sha256


@plain_record
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


@plain_record
class DatasetReference:
    """The feedback a model was trained on; repo and commit are null until it is pushed."""

    repo_id: str | None
    revision: str | None
    sha256: Sha256


@plain_record
class ProbeRecord:
    """What a probe reads of its frozen base.

    Attributes:
        layer: Whose states, as transformers counts `hidden_states`: 1 is what the first layer
            makes, the number of layers what the last one and the final norm make.
        pooling: `last` for the state of a text's last token, `mean` for the mean over the
            response's tokens, what ends its turn included, `last+mean` for both, one after the
            other.
    """

    layer: Annotated[int, Field(ge=1)]
    pooling: Pooling


@plain_record
class HeadRecord:
    """How a head was fitted on states of the frozen base, by logistic regression.

    Attributes:
        layer: Whose states, as in `ProbeRecord`; for a score head, the number of layers.
        pooling: Of the states over a text.
        l2: Strength of the penalty that was chosen.
        accuracy: On pairs that were left out, cross-validated over prompts; null where there were
            too few prompts for that.
        pairs: On which it was fitted.
    """

    layer: Count
    pooling: Pooling
    l2: Finite
    accuracy: Probability | None
    pairs: Count


@plain_record
class GradientRecord:
    """How weights were trained by gradient descent.

    Attributes:
        trainer: `together` with the run's other principles in one pass, or TRL's RewardTrainer.
        layers: Indices, from 0, of those that were trained.
        rank: Of LoRA matrices; null for a full model, as is `alpha`.
        alpha: LoRA's scale is alpha / rank.
        learning_rate: At its peak.
        epochs: Passes over the training pairs that were asked for.
        batch_size: Pairs per step.
        label_smoothing: How far probabilities were drawn to one half.
        distillation: How far they were drawn to those of the teacher.
        loss: `soft` for the cross-entropy to the verdicts' probabilities, `margin` for TRL's.
        validation_pairs: Of other prompts than the training pairs.
        start_accuracy: On the validation pairs before training; null where there were none.
        trained_accuracy: On the same pairs after it.
        steps: After which the weights were taken.
        kept: `start` when training ended worse on the validation pairs than it began.
    """

    trainer: Literal["together", "trl"]
    layers: tuple[int, ...]
    rank: Count | None
    alpha: Finite | None
    learning_rate: Finite
    epochs: Finite
    batch_size: Count
    label_smoothing: Probability
    distillation: Probability
    loss: Literal["soft", "margin"]
    validation_pairs: Count
    start_accuracy: Probability | None
    trained_accuracy: Probability | None
    steps: Count
    kept: Literal["trained", "start"]


@plain_record
class TrainingRecord:
    """How a model was made from labelled pairs.

    Attributes:
        labels: Verdicts of a judge, or people's choices.
        seed: Of splits, initial weights and the order of the pairs.
        pairs: That the weights learnt from: validation pairs among them if the start was kept, as
            its head was then fitted again.
        head: Of a probe, or from which gradient descent started; null for none.
        teacher: The probe whose predictions the head was fitted to, null for none. It saw each pair
            of a cross-validation only when it was not fitted on it.
        gradient: Null where there was no gradient descent, as with a probe.
    """

    labels: Literal["feedback", "human"]
    seed: int
    pairs: Count
    head: HeadRecord | None
    teacher: HeadRecord | None
    gradient: GradientRecord | None


@plain_record
class Calibration:
    """What makes scores comparable: calibrated score = (raw - mean) / std.

    `sigmoid((raw_a - raw_b) / temperature)` is the probability that a is preferred.
    """

    mean: Finite
    std: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    n: Count


@plain_record
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


@plain_record
class GoldenScores:
    """Raw scores of fixed texts, re-computed to show that a copy works.

    Scores are fp32 on CPU; `tolerance` is absolute, in units of the raw score.
    """

    scores: tuple[Finite, ...]
    tolerance: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


@plain_record
class ObjectiveRecord:
    """One column of a bank: a preference model by repo id and commit, or by a local folder."""

    name: str
    repo_id: str
    revision: str | None
    sha256: Sha256
    high_score: str
    verdict: Verdict | None


@plain_record
class WeightRecord:
    """The weight of one objective, with its 95 % interval where it was fitted."""

    objective: str
    value: Finite
    interval: Bounds | None


@plain_record
class WeightFitRecord:
    """What a bank's weights were fitted on, and how well they tell the labels.

    Attributes:
        labels: Verdicts of a judge, or people's choices.
        sources: Where the labelled pairs were read from.
        pairs: That were fitted on.
        prompts: Of these pairs; intervals resample them.
        l2: Strength of the penalty that was chosen.
        accuracy: On prompts that were left out, of pairs that are no ties.
        equal_accuracy: Of equal weights on the same pairs.
    """

    labels: Literal["feedback", "human"]
    sources: tuple[SourceRecord, ...]
    pairs: Count
    prompts: Count
    l2: Finite
    accuracy: RateRecord
    equal_accuracy: RateRecord


@plain_record
class PolicyCheckpoint:
    """What was measured on held-out prompts at one step of training.

    `distinct` is the share of different answers, `judged` the share that a judge prefers to those
    before training, a tie counting one half; null where it was not measured.
    """

    step: Count
    reward: Finite
    objectives: dict[str, Finite]
    kl: Finite
    words: Finite
    finished: Probability
    distinct: Probability | None = None
    judged: Probability | None = None
