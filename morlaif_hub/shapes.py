r"""Shapes: what a row means, of preference pairs, prompts or dialogues, whoever wrote it.

A response is a text, or messages that end with an assistant turn; a prompt is a text or messages.
Messages have `role` and `content`, or `from` and `value`. A dialogue may also be one text, with
"\n\nHuman:" and "\n\nAssistant:" turns (hh-rlhf) or with "### Human:" and "### Assistant:" turns
(openassistant-guanaco).
"""

import reprlib
from typing import Any, NamedTuple

from morlaif_hub.errors import DataError, MissingColumnError
from morlaif_hub.messages import (
    Prompt,
    is_dialogue,
    is_dialogue_prompt,
    is_marked_dialogue,
    parse_dialogue,
    parse_marked_dialogue,
    parse_messages,
    parse_prompt,
    prompt_messages,
)

_CHOICE = {"chosen", "rejected"}
_PAIR = {"prompt", "response_a", "response_b"}
_DIALOGUE = {"messages", "conversations", "text", "completion"}
COLUMNS = frozenset(_CHOICE | _PAIR | _DIALOGUE | {"human_choice", "split"})
"""The columns that these shapes are made of."""


class PairRow(NamedTuple):
    """The prompt and the two responses of a row; `chosen` tells whether the first was preferred.

    Where it was not, the row may have a choice in a column of its own.
    """

    prompt: Prompt
    first: str
    second: str
    chosen: bool


def pair_of_row(row: dict[str, Any]) -> PairRow:
    """Return the pair of a row.

    Raises:
        DataError: If its values are not what they should be.
        MissingColumnError: If it has not the columns of a pair.
    """
    if row.keys() >= _PAIR:
        return PairRow(*_sides(row, "response_a", "response_b"), chosen=False)
    if row.keys() >= _CHOICE:
        return PairRow(*_sides(row, "chosen", "rejected"), chosen=True)
    raise MissingColumnError(
        f"no columns of a comparison; found: {_names(row)}; accepted: chosen and rejected (whole "
        "dialogues, or texts that begin alike); prompt, chosen and rejected; or prompt, "
        "response_a, response_b and, optionally, human_choice"
    )


def prompt_of_row(row: dict[str, Any]) -> Prompt:
    """Return the turns before a row's response, or its prompt.

    Raises:
        DataError: If its values are not what they should be.
        MissingColumnError: If it has no column of a prompt.
    """
    # A pair's own prompt may be less than what precedes its responses, so a pair goes first.
    if "response_a" in row:
        return prompt_messages(_prompt_and_response(row, "response_a")[0])
    if "chosen" in row:
        implied = _implied(row)
        found = implied or _prompt_and_response(row, "chosen")
        return prompt_messages(found[0])
    if "prompt" in row:
        return prompt_messages(parse_prompt(row["prompt"]))
    turns = _whole_dialogue(row)
    if turns is None:
        raise MissingColumnError(
            f"no column of a prompt; found: {_names(row)}; accepted: prompt, messages, or "
            "conversations; text with turns that begin with '### Human:'; or the columns of a "
            "comparison"
        )
    answered = turns[-1]["role"] == "assistant"
    return prompt_messages(turns[:-1] if answered else turns)


def dialogue_of_row(row: dict[str, Any]) -> Prompt:
    """Return a row's turns up to the last one of the assistant, who says something in it.

    Of a preference pair it is the dialogue with the chosen response.

    Raises:
        DataError: If its values are not what they should be, or the assistant says nothing.
        MissingColumnError: If it has no column of a dialogue.
    """
    turns = _whole_dialogue(row)
    if turns is None and row.keys() >= {"prompt", "completion"}:
        turns = _answered(*_prompt_and_response(row, "completion"))
    if turns is None and row.keys() >= _CHOICE:
        turns = _answered(*_sides(row, "chosen", "rejected")[:2])
    if turns is None:
        raise MissingColumnError(
            f"no column of a dialogue; found: {_names(row)}; accepted: messages or conversations; "
            "text with turns that begin with '### Human:'; prompt and completion; or chosen and "
            "rejected"
        )
    said = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not any(turns[i]["content"].strip() for i in said):
        raise DataError("the assistant says nothing in the dialogue")
    return turns[: said[-1] + 1]


def _answered(prompt: Prompt, response: str) -> Prompt:
    return (*prompt, {"role": "assistant", "content": response})


def _whole_dialogue(row: dict[str, Any]) -> Prompt | None:
    """Return the turns of a column that holds all of them; None if there is none."""
    for column in ("messages", "conversations"):
        if column in row:
            return parse_messages(column, row[column])
    text = row.get("text")
    if isinstance(text, str) and is_marked_dialogue(text):
        return parse_marked_dialogue("text", text)
    if isinstance(text, str) and is_dialogue(text):
        return parse_dialogue("text", text)
    return None


def _names(row: dict[str, Any]) -> str:
    # Quoted, since a stranger's names may hold characters that a terminal obeys.
    return ", ".join(map(repr, row)) or "none"


def _sides(row: dict[str, Any], first: str, second: str) -> tuple[Prompt, str, str]:
    implied = _implied(row) if first == "chosen" else None
    if implied:
        return implied
    prompt, first_response = _prompt_and_response(row, first)
    other_prompt, second_response = _prompt_and_response(row, second)
    if prompt != other_prompt:
        raise DataError(f"{first} and {second} differ before the last assistant turn")
    return prompt, first_response, second_response


def _implied(row: dict[str, Any]) -> tuple[Prompt, str, str] | None:
    """Return prompt and responses of two plain texts that begin alike; None of other rows."""
    if "prompt" in row:
        return None
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    marked = is_marked_dialogue(chosen) and is_marked_dialogue(rejected)
    if marked or is_dialogue(chosen) or is_dialogue(rejected) or chosen == rejected:
        return None
    shared = _shared_words(chosen, rejected)
    if not chosen[:shared].strip():
        raise DataError(
            "chosen must be a dialogue that starts with 'Human:', messages, a text that begins "
            f"like rejected, or come with a prompt column; got {reprlib.repr(chosen)}"
        )
    prompt = prompt_messages(chosen[:shared].strip())
    return prompt, chosen[shared:].strip(), rejected[shared:].strip()


def _shared_words(one: str, other: str) -> int:
    """Return how many characters two different texts share from their start, in whole words."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    # Where one text goes on after the end of the other, its last word may go on too.
    while shared and not one[shared - 1].isspace():
        shared -= 1
    return shared


def _prompt_and_response(row: dict[str, Any], column: str) -> tuple[Prompt, str]:
    value = row[column]
    prompt = parse_prompt(row["prompt"]) if "prompt" in row else ()
    if isinstance(value, str):
        if prompt and not is_dialogue_prompt(row["prompt"]):
            return prompt, value
        if prompt and not is_dialogue(value):
            return prompt, value.strip()
        marked = not prompt and is_marked_dialogue(value)
        turns = (parse_marked_dialogue if marked else parse_dialogue)(column, value)
    else:
        turns = parse_messages(column, value)
    if turns[-1]["role"] != "assistant":
        raise DataError(f"{column} must end with an assistant turn, got {turns[-1]['role']!r}")
    if len(turns) == 1 and not prompt:
        raise DataError(f"{column} has no turn before the response")
    return _joined(prompt, turns[:-1], column), turns[-1]["content"]


def _joined(prompt: Prompt, before: Prompt, column: str) -> Prompt:
    """Return all turns before a response, which may repeat the prompt or continue it."""
    if not before:
        return prompt
    if before[: len(prompt)] == prompt or before[-len(prompt) :] == prompt:
        return before
    if before[0]["role"] == "assistant":
        return prompt + before
    raise DataError(f"the turns in {column} do not agree with the prompt")
