"""Ids, splits and the label's place as properties; then each shape of row, and what is refused."""

import dataclasses
import gzip
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from morlaif_hub.comparisons import (
    BUILT_IN_PROMPTS,
    Comparison,
    Message,
    prompt_id,
    prompt_messages,
    read_comparisons,
    read_dialogues,
    read_prompts,
    split_by_prompt,
    write_comparisons,
)
from morlaif_hub.errors import DataError, MissingColumnError, OptionError, WorkspaceError
from morlaif_hub.shapes import pair_of_row

# A deadline would measure the machine's other work as well.
unhurried = settings(deadline=None)

Row = dict[str, Any]

texts = st.text().filter(str.strip)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}
    ),
    min_size=1,
    max_size=4,
)
responses = st.tuples(texts, texts).filter(lambda pair: pair[0] != pair[1])
comparisons = st.builds(
    lambda prompt, pair, choice, split: Comparison(tuple(prompt), *pair, choice, split),
    messages,
    responses,
    st.sampled_from(["a", "b", None]),
    st.sampled_from(["train", "test", None]),
)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(items: Iterator[Comparison]) -> Comparison:
    (item,) = items
    return item


def preferred(comparison: Comparison) -> tuple[str, str]:
    """The preferred response and the other one."""
    a, b = comparison.response_a, comparison.response_b
    assert comparison.human_choice is not None
    return (a, b) if comparison.human_choice == "a" else (b, a)


# Identity


@unhurried
@given(comparisons)
def test_the_id_does_not_depend_on_the_order_of_the_responses(comparison: Comparison) -> None:
    swapped = comparison.swap()
    assert (swapped.response_a, swapped.response_b) == (
        comparison.response_b,
        comparison.response_a,
    )
    assert swapped.id == comparison.id
    assert swapped.prompt_id == comparison.prompt_id
    assert swapped.swap() == comparison
    assert len(comparison.id) == 32


@unhurried
@given(comparisons, comparisons)
def test_comparisons_share_an_id_only_if_they_share_their_content(
    one: Comparison, other: Comparison
) -> None:
    def content(comparison: Comparison) -> tuple[object, frozenset[str]]:
        return comparison.prompt, frozenset((comparison.response_a, comparison.response_b))

    assert (one.id == other.id) == (content(one) == content(other))
    assert (one.prompt_id == other.prompt_id) == (one.prompt == other.prompt)


def test_the_id_separates_its_parts() -> None:
    pairs = [("x", "y z"), ("x y", "z"), ("x\ny", "z"), ("x", "y\nz"), ('x","y', "z")]
    assert len({Comparison(prompt_messages("q"), *pair).id for pair in pairs}) == len(pairs)
    assert (
        Comparison(prompt_messages("q"), "x", "y").id
        != Comparison((user("q"), user("x")), "x", "y").id
    )


def test_ids_stay_the_same_from_version_to_version() -> None:
    comparison = Comparison(prompt_messages("Why?"), "Because.", "Ask again, déjà vu.")
    assert comparison.id == "9ed42eb04d09c7b03f8dfdd9b361fed2"
    assert comparison.prompt_id == "51ce2e32ea943357e4d950121e26d546"


def test_choice_and_split_are_no_part_of_the_id() -> None:
    plain = Comparison(prompt_messages("q"), "x", "y")
    assert dataclasses.replace(plain, human_choice="a", split="test").id == plain.id


def test_a_list_changed_later_does_not_change_the_comparison() -> None:
    turns = [user("q")]
    comparison = Comparison(tuple(turns), "x", "y")
    turns[0]["content"] = "another"
    assert comparison.prompt == (user("q"),)


# The label's place


@unhurried
@given(messages, responses)
def test_the_order_of_the_responses_does_not_tell_which_was_chosen(
    prompt: list[Message], pair: tuple[str, str]
) -> None:
    one = Comparison.from_choice(prompt, pair[0], pair[1])
    other = Comparison.from_choice(prompt, pair[1], pair[0])
    assert (one.response_a, one.response_b) == (other.response_a, other.response_b)
    assert {one.human_choice, other.human_choice} == {"a", "b"}
    assert preferred(one) == pair


@settings(unhurried, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_about_half_of_the_chosen_responses_become_a(seed: int) -> None:
    generator = random.Random(seed)
    numbers = generator.sample(range(10**9), 1000)
    made = [Comparison.from_choice("q", f"yes {n}", f"no {n}") for n in numbers]
    first = sum(comparison.human_choice == "a" for comparison in made)
    # Six standard deviations of a fair coin: sqrt(1000) / 2 * 6 = 95.
    assert abs(first - 500) < 95


# Splits


@unhurried
@given(
    st.lists(st.text(max_size=4), max_size=40),
    st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_a_split_holds_out_exactly_its_share_whatever_the_order_and_repeats(
    ids: list[str], fraction: float, seed: int, generator: random.Random
) -> None:
    held_out = split_by_prompt(ids, test_fraction=fraction, seed=seed)
    different = set(ids)
    assert held_out <= different
    if len(different) < 2:
        assert not held_out
    else:
        assert 1 <= len(held_out) <= len(different) - 1
        share = fraction * len(different)
        assert abs(len(held_out) - share) <= 0.5 or len(held_out) in (1, len(different) - 1)
    again = ids + generator.choices(ids, k=5) if ids else []
    generator.shuffle(again)
    assert split_by_prompt(again, test_fraction=fraction, seed=seed) == held_out


@pytest.mark.parametrize(
    ("prompts", "fraction", "count"), [(10, 0.3, 3), (2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0)]
)
def test_split_counts(prompts: int, fraction: float, count: int) -> None:
    ids = [f"prompt {i}" for i in range(prompts)]
    assert len(split_by_prompt(ids, test_fraction=fraction, seed=0)) == count


def test_another_seed_holds_out_other_prompts() -> None:
    ids = [f"prompt {i}" for i in range(100)]
    splits = {split_by_prompt(ids, test_fraction=0.5, seed=seed) for seed in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_split_without_two_sides_is_refused(fraction: float) -> None:
    with pytest.raises(OptionError, match="test_fraction must be between 0 and 1"):
        split_by_prompt(["a", "b"], test_fraction=fraction, seed=0)


# Round trip


@unhurried
@given(st.lists(comparisons, min_size=1, max_size=5, unique_by=lambda comparison: comparison.id))
@pytest.mark.parametrize("name", ["pairs.jsonl", "deep/er/pairs.jsonl.gz"])
def test_what_is_written_reads_back(name: str, written: list[Comparison]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        assert write_comparisons(path, iter(written)) == len(written)
        assert list(read_comparisons(path)) == written
        first = path.read_bytes()
        write_comparisons(path, written)
        assert path.read_bytes() == first
        assert [file for file in Path(folder).rglob("*") if file.is_file()] == [path]


@unhurried
@given(comparisons)
def test_parquet_holds_the_same_rows(comparison: Comparison) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist([dataclasses.asdict(comparison)]), path)
        assert only(read_comparisons(path)) == comparison


def test_a_compressed_file_does_not_depend_on_its_name_and_time(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    write_comparisons(path, [Comparison(prompt_messages("q"), "x", "y")])
    flags_and_time = path.read_bytes()[3:8]
    assert flags_and_time == bytes(5)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    def failing() -> Iterator[Comparison]:
        yield Comparison(prompt_messages("q"), "x", "y")
        raise RuntimeError("sampling stopped")

    path = tmp_path / "pairs.jsonl"
    path.write_text("as it was")
    with pytest.raises(RuntimeError, match="sampling stopped"):
        write_comparisons(path, failing())
    with pytest.raises(DataError, match="there is no comparison to write"):
        write_comparisons(path, [])
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    pairs = [Comparison(prompt_messages("q"), "x", "y")]
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"pairs\.jsonl: cannot be written: "):
        write_comparisons(tmp_path / "file" / "pairs.jsonl", pairs)
    with pytest.raises(OptionError, match=r"pairs\.parquet: .* \.jsonl or \.jsonl\.gz"):
        write_comparisons(tmp_path / "pairs.parquet", pairs)


# Shapes

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant:"
TURNS = [user("Hi"), assistant("Hello."), user("A joke?")]
SYSTEM = {"role": "system", "content": ""}

CHOICES: dict[str, Row] = {
    "dialogues": {"chosen": f"{DIALOGUE} Knock!", "rejected": f"{DIALOGUE} No.\n"},
    "messages": {
        "chosen": [*TURNS, assistant("Knock!")],
        "rejected": [*TURNS, assistant("No.")],
    },
    "messages that repeat the prompt": {
        "prompt": TURNS,
        "chosen": [*TURNS, assistant("Knock!")],
        "rejected": [*TURNS, assistant("No.")],
    },
    "messages after the prompt": {
        "prompt": TURNS,
        "chosen": [assistant("Knock!")],
        "rejected": [assistant("No.")],
    },
    "messages that go on after the prompt": {
        "prompt": [user("Hi")],
        "chosen": [*TURNS[1:], assistant("Knock!")],
        "rejected": [*TURNS[1:], assistant("No.")],
    },
    "messages before and with the prompt": {
        "prompt": "A joke?",
        "chosen": [*TURNS, assistant("Knock!")],
        "rejected": [*TURNS, assistant("No.")],
    },
    "prompt as messages": {"prompt": TURNS, "chosen": "Knock!", "rejected": "No."},
    "prompt as a dialogue": {"prompt": DIALOGUE, "chosen": " Knock!", "rejected": " No."},
    "prompt as a dialogue, stripped": {
        "prompt": DIALOGUE.strip(),
        "chosen": "Assistant: Knock!",
        "rejected": "\n\nAssistant: No.",
    },
    "prompt as a dialogue, cut": {
        "prompt": DIALOGUE.removesuffix("\n\nAssistant:"),
        "chosen": f"{DIALOGUE} Knock!",
        "rejected": f"{DIALOGUE} No.",
    },
    "further columns and keys": {
        "prompt": TURNS,
        "chosen": [{**assistant("Knock!"), "tool_calls": None}],
        "rejected": [assistant("No.")],
        "score": 3,
    },
}


@pytest.mark.parametrize("row", CHOICES.values(), ids=CHOICES)
def test_shapes_with_a_choice(row: Row, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", row)
    comparison = only(read_comparisons(path))
    assert comparison == Comparison.from_choice(TURNS, "Knock!", "No.")
    assert preferred(comparison) == ("Knock!", "No.")
    assert read_prompts(path) == [comparison.prompt]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response_a": "x", "response_b": "y", "human_choice": "b"},
        {
            "prompt": [user("Hi")],
            "response_a": [assistant("x")],
            "response_b": [user("Hi"), assistant("y")],
            "human_choice": "b",
            # A feedback data set has these too; they are a judge's choice, not a person's.
            "chosen": [assistant("x")],
            "rejected": [assistant("y")],
        },
    ],
)
def test_shapes_with_two_responses_keep_their_order(row: Row, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", row)
    assert only(read_comparisons(path)) == Comparison((user("Hi"),), "x", "y", "b")
    write_rows(path, {**row, "human_choice": None})
    assert only(read_comparisons(path)).human_choice is None


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    row = {"prompt": " Hi\n", "chosen": " x\u2028\n", "rejected": "x\r\n\n\nHuman: y"}
    comparison = only(read_comparisons(write_rows(tmp_path / "pairs.jsonl", row)))
    assert comparison.prompt == (user(" Hi\n"),)
    assert preferred(comparison) == (row["chosen"], row["rejected"])


@pytest.mark.parametrize(
    "prompt", ["Human: who are you?", "Is this right?\n\nHuman: Hi\n\nAssistant:"]
)
def test_a_prompt_that_speaks_of_turns_is_no_dialogue(prompt: str, tmp_path: Path) -> None:
    row = {"prompt": prompt, "chosen": "x", "rejected": "y"}
    comparison = only(read_comparisons(write_rows(tmp_path / "pairs.jsonl", row)))
    assert comparison.prompt == (user(prompt),)


def test_splits_come_from_the_row_before_the_file_name(tmp_path: Path) -> None:
    def row(prompt: str, **more: object) -> Row:
        return {"prompt": prompt, "chosen": "x", "rejected": "y", **more}

    write_rows(tmp_path / "other.jsonl", row("1"), row("2", split="test"))
    write_rows(tmp_path / "test.jsonl", row("3"), row("4", split="train"), row("5", split=None))
    pq.write_table(pa.Table.from_pylist([row("6")]), tmp_path / "train-00000-of-00001.parquet")
    found = {c.prompt[0]["content"]: c.split for c in read_comparisons(tmp_path)}
    assert found == {"1": None, "2": "test", "3": "test", "4": "train", "5": "test", "6": "train"}
    kept = [c.prompt[0]["content"] for c in read_comparisons(tmp_path, split="train")]
    assert kept == ["4", "6"]


def test_a_repeated_pair_is_read_once_and_the_first_counts(tmp_path: Path) -> None:
    first = {"prompt": "q", "response_a": "x", "response_b": "y", "human_choice": "a"}
    swapped = {"prompt": "q", "response_a": "y", "response_b": "x", "human_choice": None}
    path = write_rows(tmp_path / "pairs.jsonl", first, swapped, first)
    assert only(read_comparisons(path)) == Comparison((user("q"),), "x", "y", "a")


def test_a_limit_stops_before_what_follows_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in (1, 1, 2)]
    path = write_rows(tmp_path / "pairs.jsonl", *rows, {"bad": "row"})
    assert [c.prompt[0]["content"] for c in read_comparisons(path, limit=2)] == ["1", "2"]
    assert len(read_prompts(path, limit=2)) == 2
    with pytest.raises(DataError, match="line 4"):
        list(read_comparisons(path, limit=3))


def test_hub_data_sets_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(source: str, **_options: object) -> SimpleNamespace:
        assert source == "owner/name@v1"
        return SimpleNamespace(path=tmp_path, repo_id="owner/name", revision="c0ffee")

    client = ModuleType("morlaif_hub.hub.client")
    client.fetch = fetch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, client.__name__, client)
    (tmp_path / "part").mkdir()
    line = json.dumps(CHOICES["dialogues"]).encode()
    (tmp_path / "part" / "test.jsonl.gz").write_bytes(gzip.compress(line))
    write_rows(tmp_path / "transcripts.jsonl", {"transcript": "..."})
    comparison = only(read_comparisons("owner/name/part@v1"))
    assert (preferred(comparison), comparison.split) == (("Knock!", "No."), "test")
    assert read_prompts("owner/name/part@v1") == [comparison.prompt]
    where = "owner/name/transcripts.jsonl: line 1: "
    with pytest.raises(MissingColumnError, match=f"^{re.escape(where)}"):
        list(read_comparisons("owner/name@v1"))
    # As in Anthropic/hh-rlhf, where transcripts lie beside the pairs' train and test files.
    told: list[str] = []
    assert only(read_comparisons("owner/name@v1", on_bad=told.append)) == comparison
    assert [message.startswith(where) for message in told] == [True]
    (tmp_path / "part" / "test.jsonl.gz").rename(tmp_path / "part" / "pairs.jsonl.gz")
    with pytest.raises(MissingColumnError, match=f"^{re.escape(where)}"):
        list(read_comparisons("owner/name@v1", on_bad=told.append))


# What is refused

PLAIN: Row = {"prompt": "q", "chosen": "x", "rejected": "y"}
PAIR: Row = {"prompt": "q", "response_a": "x", "response_b": "y"}

BAD_ROWS: list[tuple[Row, str]] = [
    (
        {**PLAIN, "chosen": None},
        "chosen must be a text, or messages with role and content, got None",
    ),
    ({**PLAIN, "chosen": float("nan")}, "chosen must be a text, or messages .*, got nan"),
    ({**PLAIN, "rejected": 3}, "rejected must be a text, or messages .*, got 3"),
    ({**PLAIN, "chosen": " \n"}, "chosen is empty"),
    ({**PLAIN, "rejected": ""}, "rejected is empty"),
    ({**PLAIN, "rejected": "x"}, "chosen and rejected are the same text"),
    ({**PLAIN, "prompt": None}, "prompt must be a text, or messages .*, got None"),
    ({**PLAIN, "prompt": "  "}, "prompt is empty"),
    ({**PLAIN, "prompt": []}, r"prompt must be a text, or messages .*, got \[\]"),
    ({**PLAIN, "prompt": [user("")]}, "prompt is empty"),
    ({**PLAIN, "prompt": "\n\nHuman:\n\nAssistant:"}, "prompt is empty"),
    ({**PLAIN, "prompt": ["q"]}, r"prompt\[0\] must have role and content, got 'q'"),
    ({**PLAIN, "prompt": [{"role": "bot", "content": "q"}]}, r"prompt\[0\]: role must be one of "),
    ({**PLAIN, "prompt": [{"role": "user"}]}, r"prompt\[0\]: content must be a text, got None"),
    ({**PLAIN, "prompt": "\ud800"}, "prompt.*: content is not valid Unicode: surrogates"),
    ({**PLAIN, "chosen": "\udfff!"}, "chosen is not valid Unicode: surrogates .*, character 0"),
    ({**PLAIN, "split": "dev"}, "split must be 'train', 'test' or null, got 'dev'"),
    ({**PLAIN, "chosen": [user("x")]}, "chosen must end with an assistant turn, got 'user'"),
    ({**PLAIN, "chosen": [user("other"), assistant("x")]}, "turns in chosen do not agree"),
    ({**PAIR, "response_a": ""}, "response_a is empty"),
    ({**PAIR, "response_b": "x"}, "response_a and response_b are the same text"),
    ({**PAIR, "response_b": None}, "response_b must be a text, or messages .*, got None"),
    ({**PAIR, "human_choice": "A"}, "human_choice must be 'a', 'b' or null, got 'A'"),
    ({**PAIR, "human_choice": float("nan")}, "human_choice must be 'a', 'b' or null, got nan"),
    ({"chosen": "x", "rejected": "y"}, "chosen must be a dialogue that starts with 'Human:'"),
    ({"chosen": f"{DIALOGUE} x", "rejected": DIALOGUE}, "rejected is empty"),
    ({"chosen": f"{DIALOGUE} x", "rejected": f"{DIALOGUE}  x"}, "are the same text"),
    (
        {"chosen": f"{DIALOGUE} x", "rejected": "\n\nHuman: Hi\n\nAssistant: y"},
        "chosen and rejected differ before the last assistant turn",
    ),
    (
        {"chosen": f"{DIALOGUE} x\n\nHuman: Stop", "rejected": f"{DIALOGUE} y"},
        "chosen must end with an assistant turn, got 'user'",
    ),
    (
        {"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"},
        "chosen has no turn before the response",
    ),
    ({"prompt": "q", "chosen": "x"}, "no columns of a comparison; found: 'prompt', 'chosen';"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS)
def test_a_bad_row_raises_with_its_line_or_is_told(bad: Row, message: str, tmp_path: Path) -> None:
    good = [{**PLAIN, "prompt": "first"}, {**PLAIN, "prompt": "last"}]
    path = write_rows(tmp_path / "pairs.jsonl", good[0], bad, good[1])
    with pytest.raises(DataError, match=rf"pairs\.jsonl: line 2: .*{message}"):
        list(read_comparisons(path))
    told: list[str] = []
    read = [c.prompt[0]["content"] for c in read_comparisons(path, on_bad=told.append)]
    assert read == ["first", "last"]
    assert len(told) == 1
    assert told[0].startswith(f"{path}: line 2: ")


def test_a_missing_column_names_what_was_found_and_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"question": ["q"], "chosen": ["x"]}), path)
    found = r"pairs\.parquet: row 1: .*found: 'question', 'chosen'; accepted: chosen and rejected"
    with pytest.raises(MissingColumnError, match=found):
        list(read_comparisons(path, on_bad=lambda _message: None))


def test_a_source_without_comparisons_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", PLAIN)
    with pytest.raises(DataError, match="holds no readable comparison of the split 'test'"):
        list(read_comparisons(path, split="test"))
    write_rows(path, {**PLAIN, "chosen": ""})
    with pytest.raises(DataError, match=r"holds no readable comparison$"):
        list(read_comparisons(path, on_bad=lambda _message: None))
    path.write_text("[]")
    with pytest.raises(DataError, match=r"holds no readable comparison$"):
        list(read_comparisons(path))


def test_wrong_options_and_missing_files_are_refused_before_reading(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", PLAIN)
    with pytest.raises(OptionError, match="limit must be at least 1, got 0"):
        read_comparisons(path, limit=0)
    with pytest.raises(OptionError, match="limit must be at least 1, got -1"):
        read_prompts(path, limit=-1)
    with pytest.raises(OptionError, match="split must be 'train', 'test' or None, got 'dev'"):
        read_comparisons(path, split="dev")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no such file"):
        read_comparisons(tmp_path / "none.jsonl")


@unhurried
@given(st.text())
def test_a_comparison_takes_texts_with_content_only(text: str) -> None:
    assume(text != "x")
    if text.strip():
        assert Comparison((user("q"),), "x", text).response_b == text
        assert prompt_messages(text) == (user(text),)
    else:
        with pytest.raises(DataError, match="response_b is empty"):
            Comparison((user("q"),), "x", text)
        with pytest.raises(DataError, match="prompt is empty"):
            prompt_messages(text)


# Prompts


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q"}, [user("q")]),
        ({"prompt": TURNS}, TURNS),
        ({"prompt": DIALOGUE}, TURNS),
        ({"prompt": DIALOGUE.removesuffix("\n\nAssistant:")}, TURNS),
        ({"messages": [*TURNS, assistant("Knock!")]}, TURNS),
        ({"messages": TURNS}, TURNS),
        ({"prompt": "q", "response_a": "x", "response_b": "y"}, [user("q")]),
        # A prompt is as good without a second response, or with one that no pair can have.
        ({"chosen": f"{DIALOGUE} x", "rejected": f"{DIALOGUE} x"}, TURNS),
    ],
)
def test_shapes_of_prompts(row: Row, prompt: list[Message], tmp_path: Path) -> None:
    assert read_prompts(write_rows(tmp_path / "prompts.jsonl", row)) == [tuple(prompt)]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "prompts.parquet")
    assert read_prompts(tmp_path / "prompts.parquet") == [tuple(prompt)]


def test_a_text_file_holds_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One?\n\n  Two?  \nOne?\n")
    assert read_prompts(path) == [(user("One?"),), (user("Two?"),)]
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no readable prompt"):
        read_prompts(path)
    with pytest.raises(DataError, match="not a data file that can be read"):
        read_comparisons(path)


def test_bad_prompts_raise_with_their_line_or_are_told(tmp_path: Path) -> None:
    bad = [{"prompt": ""}, {"messages": [assistant("x")]}, {"text": "q"}]
    path = write_rows(tmp_path / "prompts.jsonl", {"prompt": "q"}, *bad)
    with pytest.raises(DataError, match="line 2: prompt is empty"):
        read_prompts(path)
    told: list[str] = []
    assert len(read_prompts(path, on_bad=told.append)) == 1
    assert [message.split(": ")[1] for message in told] == ["line 2", "line 3", "line 4"]
    write_rows(path, {"text": "q"})
    with pytest.raises(MissingColumnError, match="found: 'text'; accepted: prompt, messages, or"):
        read_prompts(path)


# Dialogues

GUANACO = "### Human: Hi### Assistant: Hello.### Human: A joke?"
ANSWERED = [*TURNS, assistant("Knock!")]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
JOKE = [{"from": "human", "value": "A joke?"}, {"from": "gpt", "value": "Knock!"}]

DIALOGUES: dict[str, Row] = {
    "guanaco": {"text": f"{GUANACO}### Assistant: Knock!"},
    "guanaco, spaced": {"text": f" {GUANACO}\n\n###Assistant: Knock!\n"},
    "guanaco that goes on": {"text": f"{GUANACO}### Assistant: Knock!### Human: Who's there?"},
    "hh-rlhf as one text": {"text": f"{DIALOGUE} Knock!"},
    "messages": {"messages": ANSWERED},
    "messages that go on": {"messages": [*ANSWERED, user("Who's there?")], "text": "q"},
    "conversations": {"conversations": [*SHARED, *JOKE]},
    "completion as a text": {"prompt": TURNS, "completion": "Knock!"},
    "completion as messages": {"prompt": TURNS, "completion": [assistant("Knock!")]},
    "completion in other words": {"prompt": [*SHARED, JOKE[0]], "completion": [JOKE[1]]},
    "the chosen side": {"chosen": f"{DIALOGUE} Knock!", "rejected": f"{DIALOGUE} No."},
}


@pytest.mark.parametrize("row", DIALOGUES.values(), ids=DIALOGUES)
def test_shapes_of_dialogues(row: Row, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "dialogues.jsonl", row, row)
    assert list(read_dialogues(path)) == [tuple(ANSWERED)]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "dialogues.parquet")
    assert list(read_dialogues(tmp_path / "dialogues.parquet")) == [tuple(ANSWERED)]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"text": f"{GUANACO}### Assistant: Knock!"}, TURNS),
        ({"text": GUANACO}, TURNS),
        ({"conversations": [*SHARED, *JOKE]}, TURNS),
        ({"text": f"{DIALOGUE} Knock!"}, TURNS),
    ],
)
def test_dialogues_give_prompts(row: Row, prompt: list[Message], tmp_path: Path) -> None:
    assert read_prompts(write_rows(tmp_path / "rows.jsonl", row)) == [tuple(prompt)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": "### Human: Hi"}, "the assistant says nothing in the dialogue"),
        ({"text": "### Human: Hi### Assistant: \n"}, "the assistant says nothing"),
        ({"text": "Hi there"}, "no column of a dialogue; found: 'text'; accepted: messages"),
        ({"messages": TURNS[:1]}, "the assistant says nothing"),
        ({"conversations": [{"from": "moon", "value": "x"}]}, r"\[0\]: role .*got 'moon'"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, r"\[0\]: role .*got \['gpt'\]"),
        ({"prompt": "q"}, "no column of a dialogue; found: 'prompt'"),
        ({"prompt": "q", "completion": ""}, "the assistant says nothing"),
    ],
)
def test_bad_dialogues_raise_with_their_line_or_are_told(
    bad: Row, message: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", {"messages": ANSWERED}, bad)
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        list(read_dialogues(path))
    told: list[str] = []
    assert len(list(read_dialogues(path, on_bad=told.append))) == 1
    assert len(told) == 1


def test_a_dialogue_is_read_once_and_a_limit_counts_them(tmp_path: Path) -> None:
    rows = [{"messages": [user(str(i)), assistant("x")]} for i in (1, 1, 2, 3)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    assert [d[0]["content"] for d in read_dialogues(path, limit=2)] == ["1", "2"]


# What TRL takes as preferences


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            "The sky is",
            ("blue.", "green."),
        ),
        # TRL itself would cut after "bl".
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            "The sky is",
            ("blue.", "black."),
        ),
        (
            {"chosen": "Is it blue? Yes", "rejected": "Is it blue? Yes, it is"},
            "Is it blue?",
            ("Yes", "Yes, it is"),
        ),
        ({"prompt": "The sky is", "chosen": " blue", "rejected": " red"}, None, (" blue", " red")),
        (
            {
                "chosen": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "x"}],
                "rejected": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "y"}],
            },
            "q",
            ("x", "y"),
        ),
    ],
)
def test_shapes_of_preferences_that_trl_takes(
    row: Row, prompt: str | None, responses: tuple[str, str], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", row)
    comparison = only(read_comparisons(path))
    assert comparison.prompt == (user(prompt or row["prompt"]),)
    assert preferred(comparison) == responses
    assert read_prompts(path) == [comparison.prompt]


@unhurried
@given(st.text(alphabet="ab \n", min_size=1), st.text(alphabet="ab \n"), st.text(alphabet="ab \n"))
def test_a_shared_beginning_loses_no_word(start: str, one: str, other: str) -> None:
    """Prompt and response together are the words of the text, whatever the two share."""
    row = {"chosen": start + one, "rejected": start + other}
    try:
        pair = pair_of_row(row)
    except DataError:
        return
    assert pair.prompt[0]["content"].split() + pair.first.split() == row["chosen"].split()
    assert pair.prompt[0]["content"].split() + pair.second.split() == row["rejected"].split()


def test_repeats_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in (1, 2, 1, 1)]
    told: list[None] = []
    path = write_rows(tmp_path / "pairs.jsonl", *rows)
    assert len(list(read_comparisons(path, on_repeat=lambda: told.append(None)))) == 2
    assert len(told) == 2


@pytest.mark.parametrize("name", BUILT_IN_PROMPTS)
def test_built_in_prompts_are_different_and_clean(name: str) -> None:
    prompts = read_prompts(name)
    assert len(prompts) == {"everyday": 108, "risky": 36}[name]
    assert len({prompt_id(prompt) for prompt in prompts}) == len(prompts)
    for (turn,) in prompts:
        assert turn["role"] == "user"
        assert 3 <= len(turn["content"].split()) <= 60


def test_the_built_in_sets_share_no_prompt() -> None:
    every = [prompt_id(prompt) for name in BUILT_IN_PROMPTS for prompt in read_prompts(name)]
    assert len(every) == len(set(every))
