"""Token sequences laid out in one row: no padding, and what texts begin with in common only once.

A batch is a forest of prefixes. Each node is a stretch of new tokens, and a text is the path from a
root to the node in which it ends. Everything that works on single tokens (embeddings, matrix
products, norms) sees the row; attention sees, for each node, the keys of its path.

Source:
    arXiv:2312.07104 (SGLang, section 3), which keeps the keys and values of shared prefixes in a
    radix tree across requests; here the tree is of one batch, and its states are shared as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

SHORTEST_PREFIX = 8
"""Tokens. Sharing fewer saves less than an attention of its own costs."""

Ids = tuple[int, ...]
Slices = tuple[tuple[int, int], ...]


class Node(NamedTuple):
    """A stretch of the row whose tokens follow one another.

    Attributes:
        start: Its first place in the row.
        end: The place after its last.
        position: Of its first token in every text that it belongs to.
        before: The slices of the row that lie before it in its texts, in their order.
    """

    start: int
    end: int
    position: int
    before: Slices

    @property
    def path(self) -> Slices:
        """The slices of the row from the beginning of a text to the end of this node."""
        return joined(self.before, (self.start, self.end))


class Read(NamedTuple):
    """Where a text's state is read.

    Attributes:
        place: In the row.
        position: In the text.
        path: The slices of the row that its attention may see, in the text's order.
    """

    place: int
    position: int
    path: Slices


@dataclass(frozen=True)
class Layout:
    """A batch in one row.

    Attributes:
        ids: The token at each place.
        positions: Of each token in its text.
        nodes: In the order of the row, which they cover.
        reads: One for each text, in the order in which the texts were given.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    nodes: tuple[Node, ...]
    reads: tuple[Read, ...]


def lay_out(
    texts: Sequence[Ids], *, shortest_prefix: int | None = SHORTEST_PREFIX, read_first: bool = False
) -> Layout:
    """Return texts laid out in one row.

    Args:
        texts: Token ids, at least one each, in lexicographic order, so that those with a common
            prefix are neighbours.
        shortest_prefix: How many tokens a shared prefix must have; None to share nothing, as
            where a token also sees those that come after it.
        read_first: Read each text at its first token instead of its last.

    Example:
        >>> layout = lay_out([(1, 2, 3), (1, 2, 4, 5)], shortest_prefix=2)
        >>> layout.ids, layout.positions
        ((1, 2, 3, 4, 5), (0, 1, 2, 2, 3))
        >>> [read.path for read in layout.reads]
        [((0, 3),), ((0, 2), (3, 5))]
    """
    ids: list[int] = []
    positions: list[int] = []
    nodes: list[Node] = []
    reads: list[Read] = []
    for stretch in _stretches(texts, shortest_prefix):
        before = stretch.above.path if stretch.above else ()
        node = Node(len(ids), len(ids) + stretch.end - stretch.begin, stretch.begin, before)
        stretch.below.append(node)
        nodes.append(node)
        ids += texts[stretch.text][stretch.begin : stretch.end]
        positions += range(stretch.begin, stretch.end)
        place = node.start if read_first else node.end - 1
        reads += [Read(place, positions[place], node.path)] * stretch.ending
    return Layout(tuple(ids), tuple(positions), tuple(nodes), tuple(reads))


def row_end(texts: Sequence[Ids], start: int, *, row_tokens: int, sharing: bool) -> int:
    """Return where a row ends that begins at a place of a list of texts.

    What all its texts begin with does not count: a long prompt is worth computing once for all of
    its responses.

    Args:
        texts: In lexicographic order.
        start: The row's first text.
        row_tokens: That a row of several texts may have beside its common beginning.
        sharing: Whether texts share what they begin with.
    """
    filled = len(texts[start])
    for end in range(start + 1, len(texts)):
        text = texts[end]
        common = all_common = 0
        if sharing:
            common = max(0, common_start(texts[end - 1], text) - SHORTEST_PREFIX + 1)
            all_common = max(0, common_start(texts[start], text) - SHORTEST_PREFIX + 1)
        filled += len(text) - common
        if filled - all_common > row_tokens:
            return end
    return len(texts)


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common.

    Example:
        >>> common_start((1, 2, 3), (1, 2, 4)), common_start((1, 2), (1, 2, 3))
        (2, 2)
    """
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(i for i in range(shorter) if first[i] != second[i])


def up_to_read(ids: Ids, pad: int) -> Ids:
    """Return a text up to its last token that is no padding, at least its first one.

    There a classifier on a causal model reads it; what comes after that does not matter.

    Example:
        >>> up_to_read((1, 2, 0, 3, 0), pad=0)
        (1, 2, 0, 3)
    """
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


def first_places(path: Slices, count: int) -> Slices:
    """Return the slices that hold the first so many places of a path.

    Example:
        >>> first_places(((0, 3), (7, 12)), 5)
        ((0, 3), (7, 9))
    """
    found: list[tuple[int, int]] = []
    for start, end in path:
        taken = min(end - start, count)
        if taken:
            found.append((start, start + taken))
        count -= taken
    return tuple(found)


def later_places(path: Slices, count: int) -> Slices:
    """Return the slices that hold a path's places but for the first so many.

    Example:
        >>> later_places(((0, 3), (7, 12)), 2), later_places(((0, 3), (7, 12)), 4)
        (((2, 3), (7, 12)), ((8, 12),))
    """
    found: list[tuple[int, int]] = []
    for start, end in path:
        left = min(end - start, count)
        if start + left < end:
            found.append((start + left, end))
        count -= left
    return tuple(found)


def joined(before: Slices, last: tuple[int, int]) -> Slices:
    """Return slices with one more, as one where it begins where the last of them ends."""
    if before and before[-1][1] == last[0]:
        return (*before[:-1], (before[-1][0], last[1]))
    return (*before, last)


@dataclass
class _Stretch:
    """Tokens `begin` to `end` of a text, shared by a run of texts of which `ending` end there.

    Attributes:
        below: Is given the node that the stretch becomes, for those that go on from it.
        above: The node that it goes on from.
    """

    text: int
    begin: int
    end: int
    ending: int
    below: list[Node]
    known: list[Node]

    @property
    def above(self) -> Node | None:
        """The node before this one, which is in the row already."""
        return self.known[0] if self.known else None


def _stretches(texts: Sequence[Ids], shortest: int | None) -> Iterator[_Stretch]:
    """Yield the forest's stretches, parents before children and texts in order."""
    common = [common_start(a, b) for a, b in pairwise(texts)]
    waiting: list[tuple[int, int, int, list[Node]]] = [(0, len(texts), 0, [])]
    while waiting:
        first, last, depth, known = waiting.pop()
        if first == last:
            continue
        end, share = first + 1, len(texts[first])
        if shortest is not None:
            while end < last and common[end - 1] >= depth + shortest:
                share = min(share, common[end - 1])
                end += 1
        equal = first  # texts that are no longer than what they share come first in the order
        while equal < end and len(texts[equal]) == share:
            equal += 1
        below: list[Node] = []
        yield _Stretch(first, depth, share, equal - first, below, known)
        waiting.append((end, last, depth, known))
        waiting.append((equal, end, share, below))
