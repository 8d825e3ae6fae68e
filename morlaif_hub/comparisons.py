"""Comparisons: a prompt and two responses, read from the shapes that preference data come in.

A comparison has no preferred side of its own. Where people chose, their choice is kept beside it
as `human_choice`, and which response becomes A is decided by a hash of the content: if the chosen
one were always A, a judge that favours the first place would seem to agree with people.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from morlaif_hub.distinct import Distinct
from morlaif_hub.errors import DataError, OptionError, WorkspaceError
from morlaif_hub.messages import (
    Message,
    Messages,
    Prompt,
    check_text,
    content_hash,
    prompt_id,
    prompt_messages,
)
from morlaif_hub.shapes import COLUMNS, dialogue_of_row, pair_of_row, prompt_of_row
from morlaif_hub.sources import OnBad, Split, data_files, parse_rows, resolve_source

__all__ = [
    "BUILT_IN_PROMPTS",
    "Comparison",
    "Message",
    "Messages",
    "Prompt",
    "Side",
    "Split",
    "prompt_id",
    "prompt_messages",
    "read_comparisons",
    "read_dialogues",
    "read_prompts",
    "split_by_prompt",
    "write_comparisons",
]

Side = Literal["a", "b"]

BUILT_IN_PROMPTS = ("everyday", "risky")

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """A prompt and two different responses to it.

    Attributes:
        prompt: The turns before the response.
        response_a: One response, as text.
        response_b: The other.
        human_choice: The side that people preferred; None where unknown.
        split: The side of a train/test split that the source put it on; None where it did not.

    Raises:
        DataError: If the prompt or a response is empty or no text, the responses are the same, or
            `human_choice` or `split` is another word.
    """

    prompt: Prompt
    response_a: str
    response_b: str
    human_choice: Side | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        # A copy, so that a caller who changes its own list later does not change the id.
        object.__setattr__(self, "prompt", prompt_messages(self.prompt))
        _check_responses("response_a", self.response_a, "response_b", self.response_b)
        if self.human_choice not in ("a", "b", None):
            raise DataError(f"human_choice must be 'a', 'b' or null, got {self.human_choice!r}")
        if self.split not in ("train", "test", None):
            raise DataError(f"split must be 'train', 'test' or null, got {self.split!r}")

    @cached_property
    def id(self) -> str:
        """The hash of prompt and responses, in hex; the same for the swapped comparison."""
        return content_hash([self.prompt, *sorted((self.response_a, self.response_b))])

    @cached_property
    def prompt_id(self) -> str:
        """The hash of the prompt alone, in hex."""
        return prompt_id(self.prompt)

    def swap(self) -> "Comparison":
        """Return the same comparison with the responses, and the choice, in the other order."""
        other: dict[Side | None, Side | None] = {"a": "b", "b": "a", None: None}
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            human_choice=other[self.human_choice],
        )

    @classmethod
    def from_choice(
        cls,
        prompt: str | Sequence[Message],
        chosen: str,
        rejected: str,
        *,
        split: Split | None = None,
    ) -> "Comparison":
        """Return the comparison of a preferred response and another.

        Which of the two becomes A depends on their content alone, not on which was chosen.

        Raises:
            DataError: As for the class.

        Example:
            >>> first = Comparison.from_choice("Hi", "Hello!", "What?")
            >>> second = Comparison.from_choice("Hi", "What?", "Hello!")
            >>> (first.response_a, first.id) == (second.response_a, second.id)
            True
            >>> first.human_choice == second.human_choice
            False
        """
        turns = prompt_messages(prompt)
        _check_responses("chosen", chosen, "rejected", rejected)
        keys = [content_hash([turns, response]) for response in (chosen, rejected)]
        comparison = cls(turns, chosen, rejected, "a", split)
        return comparison if keys[0] < keys[1] else comparison.swap()


def split_by_prompt(
    prompt_ids: Iterable[str], *, test_fraction: float, seed: int
) -> frozenset[str]:
    """Return the ids of the prompts held out for testing.

    Prompts are ranked by a hash of seed and id, so neither their order nor how often one occurs
    matters. With two prompts or more, each side gets at least one; a single prompt is not held out.

    Args:
        prompt_ids: One id per comparison or prompt; repeats are fine.
        test_fraction: Share of the different prompts, between 0 and 1, both excluded.
        seed: Another seed holds out others.

    Raises:
        OptionError: If `test_fraction` is not between 0 and 1.

    Example:
        >>> len(split_by_prompt(["a", "b", "c", "d", "a"], test_fraction=0.25, seed=0))
        1
    """
    if not 0.0 < test_fraction < 1.0:
        raise OptionError(
            f"test_fraction must be between 0 and 1, both excluded, got {test_fraction}"
        )
    ranked = sorted(set(prompt_ids), key=lambda identifier: content_hash([seed, identifier]))
    if len(ranked) < 2:
        return frozenset()
    return frozenset(ranked[: min(max(round(test_fraction * len(ranked)), 1), len(ranked) - 1)])


def read_comparisons(
    source: str | Path,
    *,
    split: Split | None = None,
    limit: int | None = None,
    on_bad: OnBad | None = None,
    on_repeat: Callable[[], None] | None = None,
) -> Iterator[Comparison]:
    r"""Read comparisons one by one, each id once; of repeats the first one counts.

    Rows are objects (JSON lines, a JSON list, or parquet) in one of these shapes. A response is a
    text, or messages that end with an assistant turn. A prompt is a text or messages.

    * `chosen` and `rejected`: whole dialogues, as text with "\n\nHuman:" and "\n\nAssistant:"
      turns (hh-rlhf) or as messages, that share everything up to the last assistant turn. Other
      texts have the words with which both begin as their prompt.
    * `prompt`, `chosen` and `rejected`.
    * `prompt`, `response_a`, `response_b` and, optionally, `human_choice` (`a`, `b` or null).

    A prompt text that starts with "\n\nHuman:", or goes from "Human:" to a last "Assistant:", is a
    dialogue too. A column `split` (`train`, `test` or null) counts first; else, in a folder or Hub
    data set, a file's name does. Rows stream, in memory that does not grow with their number.

    Args:
        source: A file, a folder (all its data files, in sorted order) or a Hub data set, as
            `sources.resolve_source` tells them apart.
        split: Keep this side only.
        limit: Stop after so many comparisons.
        on_bad: Called with the message for each row that cannot be read, and reading goes on.
            Without it the first such row raises.
        on_repeat: Called for each row whose comparison was there before.

    Raises:
        DataError: If the source is missing or has no comparison, or a row cannot be read. The
            message names file and line.
        MissingColumnError: If a file's first row has none of the shapes, also with `on_bad`.
        OptionError: If `split` or `limit` is outside what is accepted.
        HubError: If the Hub does not give the data set.
    """
    if split not in (None, "train", "test"):
        raise OptionError(f"split must be 'train', 'test' or None, got {split!r}")
    _check_limit(limit)
    found = resolve_source(source)
    rows = parse_rows(data_files(found), _comparison, columns=COLUMNS, on_bad=on_bad)
    unique = _unique(rows, lambda comparison: comparison.id, on_repeat)
    kept = (item for item in unique if split in (None, item.split))
    which = "comparison" if split is None else f"comparison of the split {split!r}"
    return _at_least_one(islice(kept, limit), f"{found.label}: holds no readable {which}")


def read_prompts(
    source: str | Path, *, limit: int | None = None, on_bad: OnBad | None = None
) -> list[Prompt]:
    """Return the different prompts of a source, in order.

    Args:
        source: A built-in set (`everyday`, `risky`), a text file with one prompt a line (blank
            lines do not count), or anything with rows that `read_comparisons` or
            `read_dialogues` takes. Of its rows, a dialogue or a preference pair gives the turns
            before the last assistant turn, and `prompt` gives itself.
        limit: Stop after so many prompts.
        on_bad: As for `read_comparisons`.

    Raises:
        DataError, MissingColumnError, OptionError, HubError: As for `read_comparisons`.
    """
    _check_limit(limit)
    if source in BUILT_IN_PROMPTS:
        source = Path(str(files("morlaif_hub") / f"prompts/{source}.txt"))
    found = resolve_source(source)
    prompt_files = data_files(found, text_too=True)
    rows = parse_rows(
        prompt_files, lambda row, _split: prompt_of_row(row), columns=COLUMNS, on_bad=on_bad
    )
    unique = islice(_unique(rows, prompt_id), limit)
    return list(_at_least_one(unique, f"{found.label}: holds no readable prompt"))


def read_dialogues(
    source: str | Path, *, limit: int | None = None, on_bad: OnBad | None = None
) -> Iterator[Prompt]:
    """Read whole dialogues one by one, each once, as messages up to the assistant's last turn.

    Rows have `messages` or `conversations`; `text` with "### Human:" and "### Assistant:" turns
    (openassistant-guanaco) or with those of hh-rlhf; `prompt` and `completion`; or a preference
    pair, which gives the dialogue with the chosen response.

    Args:
        source: As for `read_comparisons`.
        limit: Stop after so many dialogues.
        on_bad: As for `read_comparisons`.

    Raises:
        DataError, MissingColumnError, OptionError, HubError: As for `read_comparisons`. A dialogue
            in which the assistant says nothing cannot be read either.
    """
    _check_limit(limit)
    found = resolve_source(source)
    rows = parse_rows(
        data_files(found), lambda row, _split: dialogue_of_row(row), columns=COLUMNS, on_bad=on_bad
    )
    unique = islice(_unique(rows, content_hash), limit)
    return _at_least_one(unique, f"{found.label}: holds no readable dialogue")


def write_comparisons(path: str | Path, comparisons: Iterable[Comparison]) -> int:
    """Write comparisons as JSON lines that `read_comparisons` reads back; return how many.

    The file appears whole or not at all, and the same comparisons give the same bytes.

    Args:
        path: Ends in `.jsonl` or `.jsonl.gz`. Its folder is made if there is none.
        comparisons: At least one.

    Raises:
        OptionError: If the name ends otherwise.
        DataError: If there is no comparison.
        WorkspaceError: If the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise OptionError(f"{path}: comparisons are written as .jsonl or .jsonl.gz")
    # Hidden, so that it is no data to whoever reads the folder meanwhile.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                count = _write_lines(file, comparisons, compress=path.suffix == ".gz")
            if count:
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{path}: cannot be written: {error}") from error
    if not count:
        raise DataError(f"{path}: there is no comparison to write")
    return count


def _write_lines(file: IO[bytes], comparisons: Iterable[Comparison], *, compress: bool) -> int:
    count = 0
    # No name and no time in the gzip header: it would make equal files differ.
    target = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if compress else file
    for comparison in comparisons:
        count += 1
        row = {"id": comparison.id, **asdict(comparison)}
        target.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    if compress:
        target.close()
    return count


def _comparison(row: dict[str, Any], file_split: Split | None) -> Comparison:
    pair = pair_of_row(row)
    split = row.get("split")
    split = file_split if split is None else split
    if pair.chosen:
        return Comparison.from_choice(pair.prompt, pair.first, pair.second, split=split)
    return Comparison(pair.prompt, pair.first, pair.second, row.get("human_choice"), split)


def _check_responses(first_name: str, first: object, second_name: str, second: object) -> None:
    for name, value in ((first_name, first), (second_name, second)):
        if not check_text(name, value).strip():
            raise DataError(f"{name} is empty")
    if first == second:
        raise DataError(f"{first_name} and {second_name} are the same text")


def _unique(
    items: Iterable[T], key: Callable[[T], str], on_repeat: Callable[[], None] | None = None
) -> Iterator[T]:
    with Distinct() as seen:
        for item in items:
            if seen.add(key(item)):
                yield item
            elif on_repeat is not None:
                on_repeat()


def _at_least_one(items: Iterable[T], otherwise: str) -> Iterator[T]:
    found = False
    for item in items:
        found = True
        yield item
    if not found:
        raise DataError(otherwise)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")
