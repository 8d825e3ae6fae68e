"""Texts in one row: every text is on its path, nothing is twice that could be shared."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morlaif_hub.bank.flex import subtree_ends
from morlaif_hub.bank.layout import SHORTEST_PREFIX, Ids, Layout, common_start, lay_out, row_end

# Few different tokens, so that texts have much in common.
TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24).map(tuple), min_size=1)


def along(layout: Layout, path: tuple[tuple[int, int], ...]) -> Ids:
    return tuple(layout.ids[i] for start, end in path for i in range(start, end))


@given(TEXTS, st.integers(1, 9))
def test_each_texts_path_spells_the_text(texts: list[Ids], shortest: int) -> None:
    texts = sorted(set(texts))
    layout = lay_out(texts, shortest_prefix=shortest)
    for text, read in zip(texts, layout.reads, strict=True):
        assert along(layout, read.path) == text
        assert layout.positions[read.place] == read.position == len(text) - 1
    for node in layout.nodes:
        before = along(layout, node.before)
        assert len(before) == node.position
        assert layout.positions[node.start : node.end] == tuple(
            range(node.position, node.position + node.end - node.start)
        )
    assert [n.start for n in layout.nodes] == [0, *(n.end for n in layout.nodes[:-1])]
    assert layout.nodes[-1].end == len(layout.ids)


@given(TEXTS)
def test_the_row_has_each_prefix_once(texts: list[Ids]) -> None:
    texts = sorted(set(texts))
    layout = lay_out(texts, shortest_prefix=1)
    assert len(layout.ids) == len({text[: i + 1] for text in texts for i in range(len(text))})


@given(TEXTS, st.integers(1, 9))
def test_no_shared_stretch_is_shorter_than_asked(texts: list[Ids], shortest: int) -> None:
    layout = lay_out(sorted(set(texts)), shortest_prefix=shortest)
    ends = {node.before[-1][1] for node in layout.nodes if node.before}
    assert all(n.end - n.start >= shortest for n in layout.nodes if n.end in ends)


@given(TEXTS, st.booleans())
def test_sharing_nothing_puts_text_after_text(texts: list[Ids], read_first: bool) -> None:
    texts = sorted(set(texts))
    layout = lay_out(texts, shortest_prefix=None, read_first=read_first)
    assert layout.ids == tuple(i for text in texts for i in text)
    assert all(along(layout, r.path) == t for t, r in zip(texts, layout.reads, strict=True))
    assert {r.position for r in layout.reads} <= (
        {0} if read_first else {len(t) - 1 for t in texts}
    )


@given(TEXTS, st.integers(1, 30), st.booleans())
def test_rows_have_every_text_once_and_no_more_tokens(
    texts: list[Ids], row_tokens: int, sharing: bool
) -> None:
    texts = sorted(set(texts))
    start = 0
    while start < len(texts):
        end = row_end(texts, start, row_tokens=row_tokens, sharing=sharing)
        assert end > start
        row, start = texts[start:end], end
        laid_out = lay_out(row, shortest_prefix=SHORTEST_PREFIX if sharing else None)
        beginning = common_start(row[0], row[-1]) if sharing else 0
        assert len(row) == 1 or len(laid_out.ids) <= row_tokens + beginning


def test_a_prompt_that_is_longer_than_a_row_is_computed_once_for_all_responses() -> None:
    prompt = tuple(range(1000))
    texts = [(*prompt, *range(2000 + 50 * i, 2050 + 50 * i)) for i in range(8)]
    assert row_end(texts, 0, row_tokens=400, sharing=True) == 7
    assert row_end(texts, 0, row_tokens=400, sharing=False) == 1


@given(TEXTS)
def test_what_goes_on_from_a_node_follows_it(texts: list[Ids]) -> None:
    layout = lay_out(sorted(set(texts)), shortest_prefix=1)
    ends = subtree_ends(layout.nodes)
    for node, end in zip(layout.nodes, ends, strict=True):
        below = [
            n for n in layout.nodes if any(a <= node.start and node.end <= b for a, b in n.before)
        ]
        assert end == max([node.end, *(n.end for n in below)])
        assert all(node.end <= n.start < end for n in below)


@given(TEXTS)
def test_common_start_is_the_longest_common_prefix(texts: list[Ids]) -> None:
    for a, b in pairwise(texts):
        n = common_start(a, b)
        assert a[:n] == b[:n]
        assert n == min(len(a), len(b)) or a[n] != b[n]


def test_a_thousand_nested_texts_are_no_recursion() -> None:
    texts = [tuple(range(i)) for i in range(1, 1200)]
    layout = lay_out(texts, shortest_prefix=1)
    assert layout.ids == tuple(range(1199))
    assert [read.path for read in layout.reads] == [((0, i),) for i in range(1, 1200)]


@pytest.mark.parametrize("shared", [7, 8])
def test_eight_tokens_are_worth_sharing(shared: int) -> None:
    texts = [(*range(shared), 100), (*range(shared), 200)]
    assert len(lay_out(texts).ids) == (10 if shared == 8 else 16)
