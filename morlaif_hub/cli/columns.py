"""Texts beside each other on a terminal, wrapped by the room that letters take there."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from morlaif_hub.cli.tables import printable

_RULE = " │ "
NARROWEST = 34  # columns for each text; with less room they stand one under the other
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns the direction of a line, and so could put words into the other column."""


def room(text: str) -> int:
    """Return how many columns a terminal needs for a line of text.

    Example:
        >>> room("né"), room("日本")
        (2, 4)
    """
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)


def wrap(text: str, width: int, *, most: int | None = None, end: bool = False) -> list[str]:
    """Return a text as lines of at most `width` columns; its own line breaks stay.

    Args:
        text: Of anybody; what would command the terminal is shown as an escape.
        width: At least 2.
        most: Leave out what exceeds so many lines, and say how many.
        end: Keep the last lines rather than the first.
    """
    safe = "".join(repr(c)[1:-1] if c in _TURNS else c for c in printable(text))
    lines: list[str] = []
    for paragraph in safe.expandtabs(4).strip("\n").split("\n"):
        wrapped = list(_filled(paragraph, width)) or [""]
        if wrapped != [""] or (lines and lines[-1]):  # of blank lines, one is enough
            lines += wrapped
    if most is not None and len(lines) > most:
        left_out = len(lines) - most + 1
        note = f"[{left_out} {'earlier' if end else 'more'} lines]"
        lines = [note, *lines[left_out:]] if end else [*lines[:-left_out], note]
    return lines


def side_by_side(
    left: Sequence[str], right: Sequence[str], width: int, *, most: int | None = None
) -> list[str]:
    """Return two texts beside each other, or one under the other where there is little room.

    Args:
        left: A heading and a text.
        right: A heading and a text.
        width: Columns for both.
        most: As for `wrap`, of each text.
    """
    each = (width - len(_RULE)) // 2
    if each < NARROWEST:
        stacked = [[heading, *wrap(text, width, most=most)] for heading, text in (left, right)]
        return [*stacked[0], "", *stacked[1]]
    columns = [
        [heading, "─" * each, *wrap(text, each, most=most)] for heading, text in (left, right)
    ]
    return [
        f"{one}{' ' * (each - room(one))}{_RULE}{other}".rstrip()
        for one, other in zip_longest(*columns, fillvalue="")
    ]


def _filled(paragraph: str, width: int) -> Iterator[str]:
    """Yield a paragraph's lines, its indentation kept on the first one."""
    body = paragraph.lstrip(" ")
    line = " " * min(len(paragraph) - len(body), width // 2)
    empty = True
    for word in body.split():
        gap = "" if empty else " "
        if not empty and room(line) + 1 + room(word) > width:
            yield line
            line, gap = "", ""
        while room(line) + len(gap) + room(word) > width:
            head = _head(word, width - room(line) - len(gap))
            yield line + gap + head
            line, gap, word = "", "", word[len(head) :]
        line, empty = line + gap + word, False
    if not empty:
        yield line


def _head(word: str, width: int) -> str:
    """Return what of a word fits, one letter at least."""
    end = 1
    while end < len(word) and room(word[: end + 1]) <= width:
        end += 1
    return word[:end]
