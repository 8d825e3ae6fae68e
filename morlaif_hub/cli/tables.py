"""How results look on a terminal: aligned tables, and text that cannot command the terminal."""

import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from morlaif_hub.evaluation.wording import bounds, listed, number, percent

if TYPE_CHECKING:
    from morlaif_hub.hub.manifest import ChoiceRecord, ValidationRecord

Cell = str | float | None
"""Text, a number of two digits after the point, a whole number, or nothing to say."""

GAP = "  "
NARROWEST = 30  # columns for the last column of a table, however little room there is


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return rows under a header: numbers to the right, the last column wrapped to the terminal.

    Args:
        header: A title for each column.
        rows: As many cells each.
    """
    cells = [list(row) for row in rows]
    columns = [_column(title, [row[i] for row in cells]) for i, title in enumerate(header[:-1])]
    used = sum(len(column[0]) + len(GAP) for column in columns)
    last = [header[-1], *(_written(row[-1]) for row in cells)]
    room = max(terminal_width() - used, NARROWEST)
    lines = []
    for *start, end in zip(*columns, last, strict=True):
        lead = "".join(cell + GAP for cell in start)
        wrapped = textwrap.wrap(end, room, break_on_hyphens=False) or [""]
        lines += [lead + wrapped[0], *(" " * used + more for more in wrapped[1:])]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Return text without the characters that a terminal would obey; line breaks and tabs stay."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def legend(high_scores: Mapping[str, str]) -> str:
    """Return what a high score of each objective means, since names mislead."""
    return "\n".join(
        wrapped(f"{name}: {words}", indent="    ") for name, words in high_scores.items()
    )


def wrapped(text: str, *, indent: str = "") -> str:
    """Return a paragraph that fits the terminal, all lines but the first indented."""
    return textwrap.fill(
        printable(text), terminal_width(), subsequent_indent=indent, break_on_hyphens=False
    )


def doubts(verdicts: Mapping[str, str | None], what: str) -> list[str]:
    """Return what has to be said before any result: who is not known to be fit.

    Args:
        verdicts: `fit`, `unproven`, `wrong way` or None, by principle.
        what: Who was validated, such as `judge`.
    """
    said = {
        "wrong way": f"WRONG WAY: the {what} prefers the worse side of the probes of {{}}.",
        "unproven": f"UNPROVEN: on the probes of {{}} the {what} did no better than chance can "
        "explain.",
        None: f"NOT VALIDATED: nothing shows that the {what} follows {{}}.",
    }
    lines = []
    for verdict, sentence in said.items():
        names = [name for name, found in verdicts.items() if found == verdict]
        if names:
            lines.append(wrapped(sentence.format(listed(names))))
    return lines


def disagreements(choices: "Mapping[str, ChoiceRecord | None]") -> list[str]:
    """Return what has to be said of a judge that prefers what people had not chosen.

    Args:
        choices: How it did on what people had chosen, or None, by principle.
    """
    against = [
        f"{name} ({percent(found.accuracy)} of {found.n} pairs, 95 % interval "
        f"{bounds(found.interval)})"
        for name, found in choices.items()
        if found is not None and found.verdict == "wrong way"
    ]
    if not against:
        return []
    return [
        wrapped(
            f"AGAINST PEOPLE: the judge mostly prefers what people had not chosen, on "
            f"{listed(against)}. People choose for many reasons and a principle is one, so it may "
            "be right; look at some pairs with morlaif-hub inspect-feedback."
        )
    ]


def validation_table(records: "Mapping[str, ValidationRecord]") -> str:
    """Return what a judge or preference model is worth on probes, by principle and part of them.

    The share of answers for the response shown first is left out where nothing was shown in an
    order.
    """
    ordered = any(record.first_share is not None for record in records.values())
    rows: list[list[Cell]] = []
    for name, record in records.items():
        parts = {part.part: part.accuracy for part in record.parts}
        shares = [None if record.first_share is None else percent(record.first_share)]
        rows.append(
            [
                name,
                record.n,
                record.accuracy,
                bounds(record.interval),
                *(parts.get(part) for part in ("longer", "shorter", "equal")),
                record.length_correlation,
                *(shares if ordered else []),
                record.verdict,
            ]
        )
    header = ("on probes of", "n", "accuracy", "95 % interval", "longer", "shorter", "equal")
    first = ("first",) if ordered else ()
    note = (
        "longer, shorter, equal: accuracy where the better side is longer, shorter or as long; "
        "r(words): correlation of the preference with the difference in words"
    )
    note += "; first: how often the response shown first is preferred." if ordered else "."
    return table((*header, "r(words)", *first, "verdict"), rows) + "\n" + wrapped(note)


def paragraphs(*parts: str | Sequence[str]) -> str:
    """Return the parts that are not empty, with a blank line between them."""
    texts = [part if isinstance(part, str) else "\n".join(part) for part in parts]
    return "\n\n".join(text for text in texts if text)


def _column(title: str, cells: Sequence[Cell]) -> list[str]:
    written = [title, *map(_written, cells)]
    width = max(map(len, written))
    words = any(isinstance(cell, str) and any(map(str.isalpha, cell)) for cell in cells)
    return [cell.ljust(width) if words else cell.rjust(width) for cell in written]


def _written(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return printable(" ".join(cell.split()))
    return f"{cell:,}" if isinstance(cell, int) else number(cell)


def terminal_width() -> int:
    """Return how many columns a line may have: those of the terminal, 120 at most."""
    return min(shutil.get_terminal_size(fallback=(100, 24)).columns, 120)
