"""What supervised fine-tuning learns from: dialogues that fit a model, and those held out."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from morlaif_hub.comparisons import split_by_prompt
from morlaif_hub.errors import DataError, OptionError
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.messages import Message, content_hash
from morlaif_hub.policies.turns import Row, dialogue_rows, last_learnt

MOST_HELD_OUT = 256
"""Dialogues: with more, the interval of their loss hardly becomes narrower."""

TOO_LONG = "no turn of the assistant's begins within the length that is read"


class Dialogues(NamedTuple):
    """What is learnt from, where it was read from, and the licence of the policy.

    Without a licence it is that of the base, and `other` where that is not known.
    """

    dialogues: Sequence[Sequence[Message]]
    source: SourceRecord
    license: str | None = None


class Fitted(NamedTuple):
    """Dialogues as rows of tokens.

    Attributes:
        learnt: The rows of the dialogues that are trained on, at least one for each.
        held_out: Those of the others.
        left_out: How many cannot be learnt from, by the reason.
    """

    learnt: list[list[Row]]
    held_out: list[list[Row]]
    left_out: dict[str, int]

    @property
    def rows(self) -> list[Row]:
        """What is trained on."""
        return [row for rows in self.learnt for row in rows]


def fit_dialogues(
    tokenizer: Any,
    dialogues: Sequence[Sequence[Message]],
    *,
    max_length: int,
    held_out: float,
    seed: int,
) -> Fitted:
    """Return dialogues as tokens, cut at the end, and split by what precedes the first answer.

    Args:
        tokenizer: With the chat template that is to be used.
        dialogues: Of at least two different prompts.
        max_length: In tokens.
        held_out: Share of the prompts that is not trained on.
        seed: Of the split.

    Raises:
        DataError: If no dialogue can be learnt from, or all of them begin alike.
        OptionError: As `dialogue_rows`.
    """
    fitting: list[tuple[str, list[Row]]] = []
    left_out: Counter[str] = Counter()
    for dialogue in dialogues:
        try:
            rows = [row.cut(max_length) for row in dialogue_rows(tokenizer, dialogue)]
        except DataError as error:
            left_out[str(error)] += 1
            continue
        if rows := [row for row in rows if row.learnt]:
            fitting.append((_beginning(dialogue), rows))
        else:
            left_out[TOO_LONG] += 1
    if not fitting:
        raise DataError(
            f"none of the {len(dialogues)} dialogues can be learnt from: "
            + "; ".join(f"{why} ({count})" for why, count in left_out.most_common(3))
        )
    share = min(held_out, MOST_HELD_OUT / len(fitting))
    apart = split_by_prompt((begun for begun, _ in fitting), test_fraction=share, seed=seed)
    if not apart:
        raise DataError(
            f"all {len(fitting)} dialogues begin with the same prompt, so none can be held out; "
            "give dialogues with at least two different prompts"
        )
    return Fitted(
        [rows for begun, rows in fitting if begun not in apart],
        [rows for begun, rows in fitting if begun in apart],
        dict(left_out),
    )


def check_end(model: Any, tokenizer: Any, fitted: Fitted) -> None:
    """Check that a model stops where the template ends the assistant's turns.

    Raises:
        OptionError: If it goes on: what it learns of ending a turn would be of no use.
    """
    configured = model.generation_config.eos_token_id
    ends = {*(configured if isinstance(configured, list) else [configured])}
    ends.add(tokenizer.eos_token_id)
    whole = [row for row in fitted.rows if row.ends]
    others = sorted(last_learnt(whole) - ends)
    if others:
        raise OptionError(
            f"the chat template of {tokenizer.name_or_path!r} ends an assistant's turn with "
            f"{tokenizer.convert_ids_to_tokens(others[0])!r}, at which the model does not stop "
            "(eos_token_id of its generation_config.json and its tokenizer); add it there, or use "
            "the template 'plain'"
        )


def _beginning(dialogue: Sequence[Message]) -> str:
    first = next(i for i, message in enumerate(dialogue) if message["role"] == "assistant")
    return content_hash([dict(message) for message in dialogue[:first]])
