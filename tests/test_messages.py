"""What counts as a conversation, and that hashes see its content alone."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub.errors import DataError
from morlaif_hub.messages import (
    Message,
    content_hash,
    is_dialogue,
    parse_dialogue,
    parse_messages,
    parse_prompt,
    prompt_id,
    prompt_messages,
)

SPEAKERS = {"user": "Human", "assistant": "Assistant"}

turns = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(list(SPEAKERS)),
            "content": st.text().map(str.strip).filter(lambda text: "Human:" not in text),
        }
    ).filter(lambda turn: "Assistant:" not in turn["content"]),
    min_size=1,
)


@settings(deadline=None)
@given(turns)
def test_a_dialogue_gives_back_the_turns_that_it_was_made_of(conversation: list[Message]) -> None:
    text = "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in conversation)
    assert is_dialogue(text)
    assert parse_dialogue("chosen", text) == tuple(conversation)


@pytest.mark.parametrize("text", ["", "Hi", "Hi\n\nHuman: you", "human: hi", "Humans: hi"])
def test_other_texts_are_no_dialogue(text: str) -> None:
    assert not is_dialogue(text)
    with pytest.raises(DataError, match="chosen must be a dialogue that starts with 'Human:'"):
        parse_dialogue("chosen", text)


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", ["a", "b", "c"]),
        ("Human: a\n\nAssistant:", ["a"]),
        ("\n\nHuman: a", ["a"]),
        ("\n\nHuman: a\n\nAssistant: b", ["a", "b"]),
        ("Human: a", ["Human: a"]),
        ("Say\n\nHuman: a\n\nAssistant:", ["Say\n\nHuman: a\n\nAssistant:"]),
    ],
)
def test_a_prompt_text_is_a_dialogue_or_one_turn(text: str, contents: list[str]) -> None:
    assert [turn["content"] for turn in parse_prompt(text)] == contents


def test_messages_keep_role_and_content_alone() -> None:
    system = {"role": "system", "content": ""}
    user = {"role": "user", "content": "q"}
    given_turns: list[Any] = [system, {**user, "name": "Ann", "tool_calls": None}]
    assert prompt_messages(given_turns) == (system, user)
    assert prompt_id(given_turns) == prompt_id((system, user))


def test_a_text_is_one_turn_of_the_user() -> None:
    assert prompt_id("q") == prompt_id([{"content": "q", "role": "user"}])
    assert prompt_id("q") != prompt_id([{"content": "q", "role": "system"}])


@pytest.mark.parametrize("value", [None, 3, {}, [], "text", [None], [{"role": "user"}]])
def test_what_is_no_list_of_messages_is_refused_by_name(value: object) -> None:
    with pytest.raises(DataError, match=r"^rejected"):
        parse_messages("rejected", value)


def test_a_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash([1, 2]) != content_hash([2, 1])
