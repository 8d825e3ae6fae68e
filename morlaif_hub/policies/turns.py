"""Dialogues as tokens, and which of them an assistant said.

Supervised fine-tuning learns what the assistant says and where it ends its turn, and nothing else.
TRL finds those tokens by the `{% generation %}` marks of a chat template, which few templates have.
Here they are found by asking the template twice, for what comes before a turn and for the turn.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from morlaif_hub.errors import DataError, OptionError
from morlaif_hub.messages import Message
from morlaif_hub.models.formats import chat_text

Template = Literal["own", "plain"]

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For base models, whose tokenizers have no chat template: a line for each turn."""

IGNORED = -100
"""The label of a token that is not learnt."""


class Row(NamedTuple):
    """A text to learn from.

    Attributes:
        ids: Of its tokens.
        labels: As many: a token's own id where it is learnt, else `IGNORED`.
        ends: Whether the end of its last turn is among them.
    """

    ids: list[int]
    labels: list[int]
    ends: bool = True

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return sum(label != IGNORED for label in self.labels)

    def cut(self, max_length: int) -> "Row":
        """Return its first tokens, at most so many.

        Example:
            >>> Row([1, 2, 3], [-100, 2, 3]).cut(2)
            Row(ids=[1, 2], labels=[-100, 2], ends=False)
        """
        if not any(label != IGNORED for label in self.labels[max_length:]):
            return Row(self.ids[:max_length], self.labels[:max_length], self.ends)
        return Row(self.ids[:max_length], self.labels[:max_length], ends=False)


def use_template(tokenizer: Any, template: Template | None) -> Template:
    """Give a tokenizer the template that was chosen, and return which one it has now.

    Args:
        tokenizer: A model's; changed in place.
        template: Its `own`, the built-in `plain` one, or None for its own if there is one.

    Raises:
        OptionError: If its own is wanted and there is none, or the plain one and the tokenizer has
            no end-of-sequence token, which ends a turn there.
    """
    own = bool(getattr(tokenizer, "chat_template", None))
    chosen: Template = template or ("own" if own else "plain")
    if chosen == "own" and not own:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template of its own; use the "
            "template 'plain'"
        )
    if chosen == "plain":
        if tokenizer.eos_token is None:
            raise OptionError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, with "
                "which the template 'plain' ends a turn; use a model that has one"
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    return chosen


def dialogue_rows(tokenizer: Any, messages: Sequence[Message]) -> list[Row]:
    """Return a dialogue as texts in which the tokens of every assistant turn are learnt.

    What is learnt of a turn begins where a policy that is asked for it would begin, and ends with
    the token that ends the turn. Most templates show a turn alike whatever follows it, and give one
    text; where a template does not, each turn gives a text of its own, which ends with it.

    Args:
        tokenizer: A fast one with a chat template.
        messages: At least one of them the assistant's.

    Returns:
        One row, or as many as there are assistant turns.

    Raises:
        DataError: If no turn is the assistant's, or the template does not take the dialogue.
        OptionError: If the template shows a turn in another way than it asks for it, or ends it
            without a token of its own, so that the turns cannot be learnt.
    """
    # As responses are read everywhere here: without white space around them.
    messages = [
        {**message, "content": message["content"].strip()}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError("no turn of the dialogue is the assistant's")
    whole = _shown(tokenizer, messages, generation_prompt=False)
    found = [_turn(tokenizer, messages, i) for i in turns]
    if all(whole.startswith(turn.text) for turn in found):
        return [_row(tokenizer, whole, found)]
    return [_row(tokenizer, turn.text, [turn]) for turn in found]


class _Turn(NamedTuple):
    """The text up to an assistant's turn, that included, and in which part of it the turn is.

    `said` is where the template's own closing words begin.
    """

    text: str
    start: int
    said: int


def _turn(tokenizer: Any, messages: Sequence[Message], i: int) -> _Turn:
    before = _shown(tokenizer, messages[:i], generation_prompt=True)
    text = _shown(tokenizer, messages[: i + 1], generation_prompt=False)
    if not text.startswith(before):
        raise OptionError(
            f"the chat template of {tokenizer.name_or_path!r} shows an assistant's turn in another "
            "way than it asks for one, so it is not clear what is to be learnt; use the template "
            "'plain'"
        )
    content = messages[i]["content"]
    found = text.rfind(content, len(before))
    # A template may change what was said; then the turn ends with its first special token.
    said = len(before) if found < 0 else found + len(content)
    return _Turn(text, len(before), said)


def _shown(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    try:
        return chat_text(tokenizer, messages, generation_prompt=generation_prompt)
    except TemplateError as error:
        raise DataError(f"the chat template does not take the dialogue: {error}") from error


def _row(tokenizer: Any, text: str, turns: Sequence[_Turn]) -> Row:
    if not tokenizer.is_fast:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path!r} cannot tell where in a text its tokens "
            "are (it is not a fast one), so an assistant's turns cannot be told apart"
        )
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = read["input_ids"]
    labels = [IGNORED] * len(ids)
    ends = special_ids(tokenizer)
    for turn in turns:
        for k in _tokens(tokenizer, ids, read["offset_mapping"], turn, ends):
            labels[k] = ids[k]
    labels[0] = IGNORED  # nothing comes before it that could tell it
    return Row(ids, labels)


def _tokens(
    tokenizer: Any,
    ids: Sequence[int],
    places: Sequence[tuple[int, int]],
    turn: _Turn,
    ends: frozenset[int],
) -> Iterator[int]:
    """Yield the numbers of a turn's tokens; one that it shares with what comes before is its."""
    for k, (low, high) in enumerate(places):
        if high <= turn.start:
            continue
        if low >= len(turn.text):
            break
        yield k
        if low >= turn.said and ids[k] in ends:
            return
    raise OptionError(
        f"the chat template of {tokenizer.name_or_path!r} ends an assistant's turn without a "
        "special token, so a policy could not learn to stop; use the template 'plain'"
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that stand for no text, such as ends of turns."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def last_learnt(rows: Sequence[Row]) -> frozenset[int]:
    """Return the ids of the tokens with which the rows' last turns end."""
    return frozenset(next(i for i in reversed(row.labels) if i != IGNORED) for row in rows)
