"""Which files a source means, and how each kind becomes rows or an error that says where."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morlaif_hub import sources
from morlaif_hub.errors import DataError, MissingColumnError
from morlaif_hub.sources import ROW_SUFFIXES, Split, data_files, parse_rows, resolve_source

COLUMNS = frozenset({"word"})


def word(row: dict[str, Any], _split: Split | None) -> str:
    """Parse a row that holds a word."""
    if "word" not in row:
        raise MissingColumnError(f"no word, only {list(row)}")
    if not isinstance(row["word"], str):
        raise DataError("word is not a text")
    return row["word"]


def read(path: Path, on_bad: Callable[[str], None] | None = None) -> list[str]:
    return list(parse_rows(data_files(resolve_source(path)), word, columns=COLUMNS, on_bad=on_bad))


def lines(*words: str) -> str:
    return "".join(json.dumps({"word": text}) + "\n" for text in words)


class Fetched(NamedTuple):
    path: Path
    repo_id: str | None
    revision: str | None


class Asked(NamedTuple):
    source: str
    repo_type: str
    allow_patterns: list[str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Asked]:
    """A Hub on which every repository is `tmp_path`; returns the list of what was asked of it."""
    asked: list[Asked] = []

    def fetch(source: str, *, repo_type: str, allow_patterns: list[str]) -> Fetched:
        asked.append(Asked(source, repo_type, allow_patterns))
        return Fetched(tmp_path, source.split("@")[0], "c0ffee")

    client = ModuleType("morlaif_hub.hub.client")
    client.fetch = fetch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, client.__name__, client)
    return asked


@pytest.mark.parametrize(
    "text", ["./a", "../a", "/a", "~/a", ".", "a.jsonl", "b/a.parquet", "a.json.gz", "a.TXT"]
)
def test_paths_are_told_from_hub_ids(text: str, hub: list[Asked]) -> None:
    source = resolve_source(text)
    assert source.path == Path(text).expanduser()
    assert source.revision is None
    assert not hub


def test_a_path_object_is_a_path_whatever_its_name(hub: list[Asked]) -> None:
    assert resolve_source(Path("owner/name")).path == Path("owner/name")
    assert not hub


@pytest.mark.parametrize(
    ("text", "asked", "folder"),
    [
        ("owner/name", "owner/name", ""),
        ("owner/name@v2", "owner/name@v2", ""),
        ("owner/name/part/inner@v2", "owner/name@v2", "part/inner/"),
    ],
)
def test_hub_ids_name_a_repository_a_folder_and_a_revision(
    text: str, asked: str, folder: str, hub: list[Asked], tmp_path: Path
) -> None:
    source = resolve_source(text)
    assert [(request.source, request.repo_type) for request in hub] == [(asked, "dataset")]
    assert hub[0].allow_patterns == [f"{folder}*{suffix}" for suffix in ROW_SUFFIXES]
    assert source.path == tmp_path / folder
    assert (source.name, source.revision) == (text.split("@")[0], "c0ffee")


@pytest.mark.parametrize("text", ["", "pairs", "owner/", "/".join(["owner", "name", "..", "x"])])
def test_what_is_neither_path_nor_id_is_an_error(text: str, hub: list[Asked]) -> None:
    with pytest.raises(DataError, match="neither a path nor a Hub data set; accepted: "):
        resolve_source(text)
    assert not hub


def test_a_local_source_has_no_folder_names_in_its_name(tmp_path: Path) -> None:
    assert resolve_source(tmp_path / "pairs.jsonl").name == "pairs.jsonl"


def test_a_missing_file_is_an_error_that_names_it_and_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    with pytest.raises(DataError, match=r"none\.jsonl: there is no such file .*\.parquet"):
        read(path)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("word\na\n")
    with pytest.raises(DataError, match=r"words\.csv: not a data file .*\.jsonl\.gz"):
        read(tmp_path / "words.csv")
    with pytest.raises(DataError, match="the folder holds no data file"):
        read(tmp_path)


def test_a_text_file_is_data_only_where_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("a\n")
    assert [file.path for file in data_files(resolve_source(path), text_too=True)] == [path]
    with pytest.raises(DataError, match="not a data file"):
        data_files(resolve_source(path))


def test_a_folder_gives_its_data_files_in_order_with_the_split_of_their_names(
    tmp_path: Path,
) -> None:
    expected: dict[str, Split | None] = {
        "a/test.jsonl.gz": "test",
        "a/train.jsonl.gz": "train",
        "data/train_prefs-00000-of-00001.parquet": "train",
        "latest.json": None,
        "test/train-0.jsonl": "train",
        "training.jsonl": None,
        "train/0000.parquet": "train",
    }
    others = ["README.md", "morlaif.json", "dataset_info.json", ".cache/x.jsonl", ".y.jsonl"]
    others += ["a/responses.jsonl", "quickstart-stages.json"]
    for name in [*expected, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.json").mkdir()
    found = data_files(resolve_source(tmp_path))
    assert {str(file.path.relative_to(tmp_path)): file.split for file in found} == expected
    assert [file.path for file in found] == sorted(file.path for file in found)


def test_a_file_given_by_name_has_no_split(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").touch()
    assert data_files(resolve_source(tmp_path / "test.jsonl"))[0].split is None


@pytest.mark.usefixtures("hub")
def test_errors_call_hub_files_by_their_repository(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n")
    files = data_files(resolve_source("owner/name"))
    with pytest.raises(DataError, match=r"^owner/name/train\.jsonl: line 1: not JSON: "):
        list(parse_rows(files, word, columns=COLUMNS))


LINES = lines("a", "b").encode()


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"word": ["a", "b"], "other": [1, 2]}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.jsonl", lambda path: path.write_text(lines("a", "b"))),
        ("w.json", lambda path: path.write_text(lines("a", "b"))),
        ("w.jsonl", lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES)),
        ("w.jsonl", lambda path: path.write_text(lines("a", "b").rstrip("\n"))),
        ("w.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES))),
        ("w.json.gz", lambda path: path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + LINES))),
        ("w.json", lambda path: path.write_text('\n [{"word": "a"},\n {"word": "b"}]')),
        ("w.json.gz", lambda path: path.write_bytes(gzip.compress(b'[{"word":"a"},{"word":"b"}]'))),
        ("w.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert read(tmp_path / name) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines("a") + "\n" + lines("b"), "line 2: the line is empty"),
        (lines("a") + '{"word": \n', "line 2: not JSON: "),
        (lines("a") + '"word"\n', "line 2: a row must be an object, got 'word'"),
        (lines("a") + '{"word": NaN}\n', "line 2: word is not a text"),
        (lines("a") + '{"word": null}\n', "line 2: word is not a text"),
        (lines("a") + '{"text": "b"}\n', "line 2: no word"),
        (lines("a") + '{"word": ' + "9" * 5000 + "}\n", "line 2: not JSON: "),
        (lines("a") + "{" + '"a":[' * 100_000 + "\n", "line 2: not JSON: "),
        ('[{"word": "a"}, 3]', "row 2: a row must be an object, got 3"),
        ("", "the file is empty"),
    ],
)
def test_a_bad_row_raises_or_is_told_and_reading_goes_on(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    (tmp_path / "b.jsonl").write_text(lines("z"))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    told: list[str] = []
    words = read(tmp_path, told.append)
    assert told == [str(caught.value)]
    assert words[-1] == "z"


def test_a_file_of_other_rows_raises_though_bad_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('not json\n{"text": "b"}\n{"text": "c"}\n')
    told: list[str] = []
    with pytest.raises(MissingColumnError, match=r"a\.jsonl: line 2: no word"):
        read(path, told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"no gzip", "cannot be read: "),
        ("a.jsonl.gz", gzip.compress(lines("a").encode())[:-9], "cannot be read: "),
        ("a.jsonl", b'{"word": "\xff"}', "cannot be read: "),
        ("a.json", b'[{"word": "a"}', "not JSON: "),
        ("a.parquet", b"", "not readable as parquet: "),
        ("a.parquet", b"PAR1 and more", "not readable as parquet: "),
    ],
)
def test_a_broken_file_raises_though_bad_rows_are_told(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, lambda _message: None)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_lines_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl.gz"
    whole = gzip.compress(lines(*(f"word {i}" for i in range(100_000))).encode())
    path.write_bytes(whole[: len(whole) // 2])
    words = parse_rows(data_files(resolve_source(path)), word, columns=COLUMNS)
    assert next(words) == "word 0"
    with pytest.raises(DataError, match="cannot be read"):
        list(words)


def damage(path: Path, *, group: int, column: int) -> None:
    """Overwrite the start of one column of one row group."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)


def test_row_groups_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "words.parquet"
    table = pa.table({"word": [f"word {i}" for i in range(40_000)]})
    pq.write_table(table, path, row_group_size=10_000)
    damage(path, group=3, column=0)
    words = parse_rows(data_files(resolve_source(path)), word, columns=COLUMNS)
    assert next(words) == "word 0"
    with pytest.raises(DataError, match=r"words\.parquet: "):
        list(words)


def test_parquet_errors_count_rows_over_groups(tmp_path: Path) -> None:
    path = tmp_path / "words.parquet"
    pq.write_table(pa.table({"word": ["a"] * 600 + [None]}), path, row_group_size=250)
    with pytest.raises(DataError, match=r"words\.parquet: row 601: word is not a text"):
        read(path)


def test_parquet_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "words.parquet"
    pq.write_table(pa.table({"other": [1, 2], "word": ["a", "b"]}), path)
    damage(path, group=0, column=0)
    assert read(path) == ["a", "b"]


def test_parquet_without_any_column_asked_for_is_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "words.parquet"
    pq.write_table(pa.table({"other": [1, 2]}), path)
    with pytest.raises(
        MissingColumnError, match=r"words\.parquet: row 1: no word, only \['other'\]"
    ):
        read(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(values, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]))
def test_a_list_is_read_as_json_does_in_pieces_of_any_size(
    items: list[Any], chunk: int, indent: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_LIST_CHUNK", chunk)
        text = json.dumps(items, indent=indent) + "\n"
        assert list(sources._list_items(io.StringIO(text))) == items


@pytest.mark.parametrize(
    "text", ["[1, 2", "[1,, 2]", "[1, 2]]", "[1 2]", "[", "[1,]", "[1}", "[,1]"]
)
def test_what_is_no_list_is_refused_as_json_does(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        list(sources._list_items(io.StringIO(text)))


def test_a_list_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps([{"word": f"word {i}"} for i in range(40_000)])[:-100])
    words = parse_rows(data_files(resolve_source(path)), word, columns=COLUMNS)
    assert next(words) == "word 0"
    with pytest.raises(DataError, match=r"words\.json: not JSON: after row 399\d\d: "):
        list(words)
