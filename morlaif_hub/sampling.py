"""Pairs to compare: different responses of one policy to the same prompt."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from morlaif_hub.comparisons import Comparison, Message, Split, write_comparisons
from morlaif_hub.errors import DataError, OptionError
from morlaif_hub.models.generation import Response, SamplingSettings, sample_responses
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.workspace import write_text

PAIRS_FILE = "pairs.jsonl"
RESPONSES_FILE = "responses.jsonl"


class SampledPairs(NamedTuple):
    """Responses by prompt, the comparisons made of them, and prompts that gave no pair.

    A prompt gives none when the policy answered it with fewer than two different texts.
    """

    responses: list[list[Response]]
    comparisons: list[Comparison]
    prompts_without_a_pair: int


def sample_pairs(
    policy: LanguageModel,
    prompts: Sequence[Sequence[Message]],
    *,
    folder: Path,
    settings: SamplingSettings,
    all_pairs: bool = False,
    instructions: Sequence[str | None] = (),
    progress: Callable[[int], None] | None = None,
) -> SampledPairs:
    """Sample responses, make pairs of them and write both.

    Args:
        policy: What answers.
        prompts: Message lists.
        folder: Where `pairs.jsonl` and `responses.jsonl` go.
        settings: How to sample; at least two responses per prompt.
        all_pairs: Every pair of a prompt's responses, rather than each response in one pair.
        instructions: System messages under which equal shares of the responses are sampled, None
            for none, so that responses differ in what is to be learned. The pairs keep the
            prompts as they are.
        progress: Told how many responses were just sampled.

    Raises:
        OptionError: If the responses cannot be shared equally among the instructions.
        DataError: If no prompt gave two different responses.
        WorkspaceError: If the folder cannot be written.
    """
    if instructions:
        responses = _instructed(policy, prompts, settings, instructions, progress)
    else:
        responses = sample_responses(policy, prompts, settings, progress=progress)
    comparisons = [
        comparison
        for prompt, found in zip(prompts, responses, strict=True)
        for comparison in pairs_of(prompt, [r.text for r in found], all_pairs=all_pairs)
    ]
    if not comparisons:
        raise DataError(
            f"no prompt of {len(prompts)} gave two different responses; raise the temperature or "
            "max_new_tokens"
        )
    _write_responses(folder / RESPONSES_FILE, prompts, responses)
    write_comparisons(folder / PAIRS_FILE, comparisons)
    without = sum(len(found) < 2 for found in responses)
    return SampledPairs(responses, comparisons, without)


def pairs_of(
    prompt: Sequence[Message],
    texts: Sequence[str],
    *,
    all_pairs: bool = True,
    split: Split | None = None,
) -> list[Comparison]:
    """Return the comparisons of one prompt's responses: all, or the first with the second etc."""
    pairs = combinations(texts, 2) if all_pairs else zip(texts[::2], texts[1::2], strict=False)
    return [Comparison(tuple(prompt), a, b, split=split) for a, b in pairs]


def read_responses(path: Path) -> list[tuple[list[Message], list[Response]]]:
    """Return the prompts and responses of a file that `sample_pairs` wrote.

    Raises:
        DataError: If the file is not one; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable file of responses: {error}") from error
    rows = []
    # Not by splitlines, which also ends a line where a response has a separator of its own.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            found = [Response(r["text"], r["finished"]) for r in row["responses"]]
            rows.append((row["prompt"], found))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a row of responses: {error!r}") from error
    return rows


def _instructed(
    policy: LanguageModel,
    prompts: Sequence[Sequence[Message]],
    settings: SamplingSettings,
    instructions: Sequence[str | None],
    progress: Callable[[int], None] | None,
) -> list[list[Response]]:
    share, left = divmod(settings.responses, len(instructions))
    if left or not share:
        raise OptionError(
            f"{settings.responses} responses cannot be shared equally among {len(instructions)} "
            "instructions; ask for a multiple"
        )
    asked = [
        [*([{"role": "system", "content": told}] if told else []), *spoken]
        for told in instructions
        for spoken in ([m for m in p if m["role"] != "system"] for p in prompts)
    ]
    found = sample_responses(policy, asked, replace(settings, responses=share), progress=progress)
    parts = [found[i : i + len(prompts)] for i in range(0, len(found), len(prompts))]
    return [
        list({r.text: r for part in of_prompt for r in part}.values())
        for of_prompt in zip(*parts, strict=True)
    ]


def _write_responses(
    path: Path, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[Response]]
) -> None:
    rows = [
        {
            "prompt": list(prompt),
            "responses": [{"text": r.text, "finished": r.finished} for r in found],
        }
        for prompt, found in zip(prompts, responses, strict=True)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
