"""What the manifest of a policy says of how it learnt, beside its rewards."""

from typing import Annotated, Literal

from pydantic import Field

from morlaif_hub.hub.records import (
    Bounds,
    Count,
    Finite,
    Sha256,
    SourceRecord,
    plain_record,
)


@plain_record
class LossRecord:
    """Mean cross-entropy per token that the assistant said, in nats, with its 95 % interval.

    The interval resamples dialogues, of which there are `n`.
    """

    value: Finite
    interval: Bounds
    n: Count


@plain_record
class SftRecord:
    """How a policy was fine-tuned on dialogues.

    Attributes:
        source: Where they were read from.
        dialogues: How many were learnt from.
        left_out: How many could not be: they have no turn of the assistant's within the length, or
            the chat template does not take them.
        tokens: That were learnt, in one epoch: the assistant's turns and what ends them.
        template: The model's own chat template, or the built-in `plain` one.
        loss_before: On held-out dialogues, before training.
        loss_after: On the same after it.
        change: 95 % interval of the second minus the first, over dialogues.
    """

    source: SourceRecord
    dialogues: Annotated[int, Field(ge=1)]
    left_out: Count
    tokens: Annotated[int, Field(ge=1)]
    template: Literal["own", "plain"]
    loss_before: LossRecord
    loss_after: LossRecord
    change: Bounds


@plain_record
class JudgedRecord:
    """What a judge said of the answers to held-out prompts, against those before training.

    Attributes:
        spec: Of who was asked, in both orders; it was not tried on probes.
        weights_sha256: Hash of a local judge's weights; null for one behind an API.
        prompt_sha256: Hash of its prompts.
        principle: What it was asked on.
        interval: 95 % interval, over prompts, of the share of answers preferred to those before
            training.
        without_answer: Answers that it said nothing on.
    """

    spec: str
    weights_sha256: Sha256 | None
    prompt_sha256: Sha256
    principle: str
    interval: Bounds
    without_answer: Count


@plain_record
class ChangeRecord:
    """95 % interval, over held-out prompts, of an objective's score minus that before training."""

    objective: str
    interval: Bounds


@plain_record
class HeldOutRecord:
    """What a policy was watched on while it learnt.

    Attributes:
        trained_on: Prompts.
        held_out: Prompts that everything is measured on.
        left_out: Prompts that are too long for the model.
        changes: Of each objective, in the bank's order.
        judge: What one said of the answers; null where none was asked.
    """

    trained_on: Count
    held_out: Count
    left_out: Count
    changes: tuple[ChangeRecord, ...]
    judge: JudgedRecord | None
