"""A quickstart's result as a table for a terminal, at most 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence

from morlaif_hub.evaluation.findings import Result
from morlaif_hub.evaluation.wording import duration, number, percent

COLUMNS = 100
_GAP = "  "
_NONE = "-"


def closing_table(result: Result) -> str:
    """Return what a quickstart measured as aligned plain text, without a line break at the end.

    Args:
        result: What `morlaif-hub quickstart --json` prints.
    """
    blocks = (_principles(result), _letter_judge(result), _steering(result), _policy(result))
    lines = [line for block in blocks for line in (*block, "")]
    return "\n".join([*lines, *_seconds(result)])


def _principles(result: Result) -> Iterator[str]:
    details = result["details"]
    rows = []
    for name, row in result["principles"].items():
        judge = details["judge_validation"].get(name)
        equal = details["equal_length_accuracy"].get(name)
        r = details["length_correlation"].get(name)
        rows.append(
            (
                name,
                str(row["pairs"]),
                _NONE if judge is None else f"{judge['verdict']} {number(judge['accuracy'])}",
                _measured(row["pm_accuracy"], row["pm_accuracy_interval"]),
                _NONE if row["length_baseline"] is None else number(row["length_baseline"]),
                _NONE if equal is None else _measured(equal["value"], equal["interval"]),
                _NONE if r is None else number(r, sign=True),
            )
        )
    header = ("principle", "pairs", "judge", "accuracy", "length", "equal length", "r(words)")
    yield from _aligned(header, rows)
    yield from _note(
        "judge: verdict and accuracy on the probes. accuracy: of the preference model on held-out "
        "pairs, against the judge's labels, with its 95 % interval. length: accuracy of the rule "
        "that only looks at length. equal length: accuracy on pairs of about equal length. "
        "r(words): correlation of the score with the number of words. Chance is 0.50."
    )


def _letter_judge(result: Result) -> Iterator[str]:
    judge = result["letter_judge"]
    yield from _note(
        f"letter judge: asked about {result['details']['letter_judge_pairs']} pairs in both "
        "orders, it preferred the response shown first in "
        f"{percent(0.5 + judge['position_bias'])} of its answers and changed its choice with the "
        f"order in {percent(judge['flip_rate'])} of the pairs (no interval)."
    )


def _steering(result: Result) -> Iterator[str]:
    rows = [
        (
            name,
            number(row["random"]),
            number(row["chosen"]),
            _measured(row["chosen"] - row["random"], row["difference_interval"], sign=True),
            number(row["words_random"], 1),
            number(row["words_chosen"], 1),
        )
        for name, row in result["steering"].items()
    ]
    header = ("steering", "random", "chosen", "change", "words random", "words chosen")
    yield from _aligned(header, rows)
    yield from _note(
        "random, chosen: share of the prompt's other answers that the judge finds worse, for an "
        "answer taken at random and for the one with the highest score. change: with its 95 % "
        "interval."
    )


def _policy(result: Result) -> Iterator[str]:
    policy = result["policy"]
    if policy is None:
        yield "policy: none was trained"
        return
    change = policy["reward_after"] - policy["reward_before"]
    score = (number(policy[key], sign=True) for key in ("reward_before", "reward_after"))
    words = (number(policy[key], 1) for key in ("words_before", "words_after"))
    rows = [
        ("score trained for", *score, _measured(change, policy["delta_interval"], sign=True)),
        *(
            (f"score of {name}", "", "", number(d, sign=True))
            for name, d in policy["others"].items()
        ),
        ("words", *words, number(policy["words_after"] - policy["words_before"], 1, sign=True)),
    ]
    yield from _aligned(("policy", "before", "after", "change"), rows)
    details = result["details"]
    for sign in details.get("policy_signs", []):
        yield from _note(f"WARNING: {sign}")
    limit = "at its KL limit" if details["policy_stopped_by"] == "max_kl" else "after its last step"
    yield from _note(
        f"On held-out prompts, scores calibrated. Stopped {limit}; the weights of step "
        f"{details['policy_steps']} are kept, {number(policy['kl'], 3)} nats per token (KL) from "
        "the model that training began with."
    )


def _seconds(result: Result) -> Iterator[str]:
    stages = {name: duration(s) for name, s in result["seconds"].items() if name != "total"}
    each = ", ".join(f"{name} {time}" for name, time in stages.items())
    yield from _note(f"time: {duration(result['seconds']['total'])} ({each})")


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines whose first column is left-aligned and cut where a line would be too long."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = COLUMNS - sum(widths[1:]) - len(_GAP) * len(widths[1:])
    widths[0] = min(widths[0], room)
    for first, *rest in (header, ["-" * width for width in widths], *rows):
        shown = first if len(first) <= room else f"{first[: room - 3]}..."
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield _GAP.join((shown.ljust(widths[0]), *cells)).rstrip()


def _note(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, break_on_hyphens=False)


def _measured(value: float | None, interval: Sequence[float] | None, *, sign: bool = False) -> str:
    if value is None or interval is None:
        return _NONE
    low, high = (number(end, sign=sign) for end in interval)
    return f"{number(value, sign=sign)} [{low}, {high}]"
