"""Ids seen before: as exact as a set, whether they are in memory or in a file."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morlaif_hub.distinct import Distinct
from morlaif_hub.errors import WorkspaceError
from morlaif_hub.messages import content_hash

ids = st.lists(st.integers(0, 30).map(content_hash), max_size=80)


@given(ids, st.integers(0, 40))
def test_it_is_as_exact_as_a_set(given_ids: list[str], in_memory: int) -> None:
    with Distinct(in_memory=in_memory) as seen:
        new = [seen.add(identifier) for identifier in given_ids]
    assert new == [identifier not in given_ids[:i] for i, identifier in enumerate(given_ids)]


def test_those_beyond_a_number_are_not_in_memory() -> None:
    with Distinct(in_memory=3) as seen:
        for number in range(10):
            assert seen.add(content_hash(number))
        assert len(seen._few) == 0
        assert not seen.add(content_hash(0))
    assert seen.add(content_hash(0))  # closed, and empty again


def test_a_full_disk_is_named() -> None:
    with Distinct(in_memory=1) as seen:
        seen.add(content_hash(0))
        seen.add(content_hash(1))
        assert seen._many is not None
        seen._many.execute("PRAGMA max_page_count = 1")
        with pytest.raises(WorkspaceError, match=r"full.* SQLITE_TMPDIR") as caught:
            all(seen.add(content_hash(number)) for number in range(2, 5000))
    assert isinstance(caught.value.__cause__, sqlite3.Error)
