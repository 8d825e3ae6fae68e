r"""Messages: a conversation as turns with a role, and the forms of text that hold one.

hh-rlhf writes a conversation as one text, with turns that start with "\n\nHuman:" or
"\n\nAssistant:"; openassistant-guanaco with "### Human:" or "### Assistant:", wherever in a line.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from morlaif_hub.errors import DataError

Message = dict[str, str]
"""One turn: `role` and `content`."""
Messages = list[Message]
Prompt = tuple[Message, ...]
"""The turns before a response; at least one of them holds text."""

ROLES = ("system", "developer", "user", "assistant", "tool")

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_MARKED_TURN = re.compile(r"###[ \t]*(Human|Assistant):")
_DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKERS = {"human": "user", "gpt": "assistant"}
_DIALOGUE_PROMPT = re.compile(r"\n\nHuman:.*|\s*Human:.*\n\nAssistant:\s*", re.DOTALL)


def prompt_messages(prompt: str | Sequence[Message]) -> Prompt:
    """Return a prompt as messages: a text is one user turn, messages keep role and content.

    Raises:
        DataError: If it holds no text, or is no text and no list of messages.

    Example:
        >>> prompt_messages("What is a fjord?")
        ({'role': 'user', 'content': 'What is a fjord?'},)
    """
    turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = parse_messages("prompt", turns)
    if not any(message["content"].strip() for message in messages):
        raise DataError("prompt is empty")
    return messages


def prompt_id(prompt: str | Sequence[Message]) -> str:
    """Return the hash of a prompt, 32 hex digits: the unit that splits and intervals go by."""
    return content_hash(prompt_messages(prompt))


def content_hash(value: object) -> str:
    """Return a hash of plain values, 32 hex digits, in which the order of keys does not count."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse_prompt(value: object) -> Prompt:
    r"""Return the messages that a `prompt` column means: a text, a dialogue or messages.

    A text is a dialogue if it starts with "\n\nHuman:" or goes from "Human:" to a last
    "Assistant:"; else it is one user turn.

    Raises:
        DataError: If it is none of them.
    """
    if not isinstance(value, str):
        return parse_messages("prompt", value)
    if not is_dialogue_prompt(value):
        return prompt_messages(value)
    turns = parse_dialogue("prompt", value)
    # A bare "Assistant:" at the end asks for the response; it is no turn.
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def is_dialogue_prompt(value: object) -> bool:
    """Return whether a `prompt` column holds a dialogue as one text."""
    return isinstance(value, str) and _DIALOGUE_PROMPT.fullmatch(value) is not None


def is_dialogue(text: str) -> bool:
    """Return whether a text starts with "Human:" or "Assistant:"."""
    return _TURN.match(text.strip()) is not None


def parse_dialogue(name: str, text: str) -> Prompt:
    """Return the turns of a dialogue in one text, without the space around each.

    Args:
        name: The column, for errors.
        text: Starts with "Human:" or "Assistant:".

    Raises:
        DataError: If it starts otherwise.
    """
    start, *pieces = _TURN.split(text.strip())
    if start or not pieces:
        raise DataError(
            f"{name} must be a dialogue that starts with 'Human:', messages, or come with a "
            f"prompt column; got {reprlib.repr(text)}"
        )
    return _turns(name, pieces)


def is_marked_dialogue(text: str) -> bool:
    """Return whether a text starts with "### Human:" or "### Assistant:"."""
    return _MARKED_TURN.match(text.strip()) is not None


def parse_marked_dialogue(name: str, text: str) -> Prompt:
    """Return the turns of a dialogue in one text whose turns are marked by "###".

    Args:
        name: The column, for errors.
        text: One of which `is_marked_dialogue` is true.

    Raises:
        DataError: If a turn is not valid Unicode.

    Example:
        >>> parse_marked_dialogue("text", "### Human: Hi### Assistant: Hello!")[1]
        {'role': 'assistant', 'content': 'Hello!'}
    """
    return _turns(name, _MARKED_TURN.split(text.strip())[1:])


def _turns(name: str, pieces: Sequence[str]) -> Prompt:
    """Return the messages of who speaks and what is said, in turn."""
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return parse_messages(
        name,
        [{"role": _DIALOGUE_ROLES[role], "content": content.strip()} for role, content in turns],
    )


def parse_messages(name: str, value: object) -> Prompt:
    """Return a list of messages with role and content alone.

    Args:
        name: The column, for errors.
        value: A list or tuple, not empty. Contents may be empty; roles are `ROLES`. A message with
            `from` and `value` in their place is taken too, where `human` and `gpt` may speak.

    Raises:
        DataError: If it is something else; the message says which turn.
    """
    if not isinstance(value, list | tuple) or not value:
        raise DataError(
            f"{name} must be a text, or messages with role and content, got {reprlib.repr(value)}"
        )
    return tuple(_message(f"{name}[{i}]", item) for i, item in enumerate(value))


def _message(name: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{name} must have role and content, got {reprlib.repr(value)}")
    role, content = value.get("role"), value.get("content")
    if role is None and value.get("from") is not None:
        speaker, content = value["from"], value.get("value")
        role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if role not in ROLES:
        raise DataError(f"{name}: role must be one of {', '.join(ROLES)}, got {reprlib.repr(role)}")
    return {"role": role, "content": check_text(f"{name}: content", content)}


def check_text(name: str, value: object) -> str:
    """Return `value` if it is a text that can be written.

    Args:
        name: The column, for errors.
        value: Anything.

    Raises:
        DataError: If it is no text, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, got {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair; no tokenizer or file takes one.
        raise DataError(
            f"{name} is not valid Unicode: {error.reason}, character {error.start}"
        ) from error
    return value
