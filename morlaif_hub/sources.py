"""Sources: a file, a folder or a Hub data set, read row by row.

All formats stream, so a set may be larger than memory. A row that cannot be read is an
error that names file and line; it is never left out unless the caller asks to be told instead.
"""

import gzip
import hashlib
import json
import re
import reprlib
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

from morlaif_hub.errors import DataError, MissingColumnError
from morlaif_hub.hub.remote_files import file_sha256

Split = Literal["train", "test"]
OnBad = Callable[[str], None]
"""Told of a row that cannot be read: file, line and reason."""

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
TEXT_SUFFIX = ".txt"

T = TypeVar("T")


class Source(NamedTuple):
    """Where data are read from.

    Attributes:
        path: A file or folder.
        name: A Hub data set's id, with the folder in it if one was given; or the name of a local
            file or folder, without the folders above it.
        revision: The Hub commit; None for a local path.
    """

    path: Path
    name: str
    revision: str | None

    @property
    def label(self) -> str:
        """What errors call it: a local path, but not a Hub data set's path deep in a cache."""
        return self.name if self.revision else str(self.path)


class DataFile(NamedTuple):
    """A file of rows; `split` is what its name says, inside a folder or Hub data set."""

    path: Path
    label: str
    split: Split | None


def resolve_source(source: str | Path) -> Source:
    """Return the file or folder that a source means; of one on the Hub, download the data files.

    A path starts with `./`, `../`, `/` or `~`, or ends like a data file. Anything else is a Hub
    data set: `owner/name` or `owner/name/folder`, with or without `@revision`.

    Raises:
        DataError: If it is neither.
        HubError: If the Hub does not give it.
    """
    text = str(source)
    starts = text.startswith(("./", "../", "/", "~")) or text in (".", "..")
    if isinstance(source, Path) or starts or text.lower().endswith((*ROW_SUFFIXES, TEXT_SUFFIX)):
        path = Path(source).expanduser()
        return Source(path, path.resolve().name, None)
    name, at, revision = text.partition("@")
    parts = name.split("/")
    if len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise DataError(
            f"{text!r} is neither a path nor a Hub data set; accepted: a path that starts with "
            f"./, ../, / or ~, a file name that ends in {', '.join(ROW_SUFFIXES)}, or a Hub id "
            "such as owner/name, owner/name/folder or owner/name@revision. For a folder here "
            f"write ./{text}"
        )
    from morlaif_hub.hub.client import fetch  # here, since a local path needs no Hub client

    repository, folder = "/".join(parts[:2]) + at + revision, parts[2:]
    # Data sets are large, and often hold other folders and the same rows in other formats.
    patterns = ["/".join([*folder, f"*{suffix}"]) for suffix in ROW_SUFFIXES]
    resolved = fetch(repository, repo_type="dataset", allow_patterns=patterns)
    return Source(resolved.path.joinpath(*folder), name, resolved.revision)


def source_sha256(source: Source) -> str:
    """Return the hash of what a source holds.

    Of one file it is what `sha256sum` prints; of several, the hash of what `sha256sum` prints for
    them in order.

    Raises:
        DataError: If there is no such file or folder, or it holds no data.
    """
    digests = {file.path: file_sha256(file.path) for file in data_files(source)}
    if source.path.is_file():
        return digests[source.path]
    listed = "".join(
        f"{digest}  {path.relative_to(source.path).as_posix()}\n"
        for path, digest in digests.items()
    )
    return hashlib.sha256(listed.encode()).hexdigest()


_NOT_ROWS = frozenset(
    {
        "morlaif.json",
        "dataset_info.json",
        "dataset_infos.json",
        "state.json",
        # Ours: what pairs were made of, and how far a quickstart came.
        "responses.jsonl",
        "quickstart-stages.json",
    }
)
_PARQUET_BUFFER = 1 << 20  # bytes of each column, else a row group of any size is read whole
_LIST_CHUNK = 1 << 16  # characters of a JSON list that are read at once
_SPACE = re.compile(r"\s*")
_SPLIT_NAME = re.compile(r"(?<![a-z])(train|test)(?![a-z])")


def data_files(source: Source, *, text_too: bool = False) -> list[DataFile]:
    """Return the file that a source is, or all data files of its folder in sorted order.

    Hidden files, files that describe a data set and those that lie beside our pairs are no data,
    unless they are named themselves. `text_too` accepts a `.txt` file.

    Raises:
        DataError: If there is no such file or folder, or it holds no data.
    """
    suffixes = (*ROW_SUFFIXES, TEXT_SUFFIX) if text_too else ROW_SUFFIXES
    accepted = f"accepted: a file that ends in {', '.join(suffixes)}, or a folder of such files"
    if source.path.is_file():
        if not source.path.name.lower().endswith(suffixes):
            raise DataError(f"{source.label}: not a data file that can be read; {accepted}")
        return [DataFile(source.path, source.label, None)]
    if not source.path.is_dir():
        raise DataError(f"{source.label}: there is no such file or folder; {accepted}")
    found = []
    for path in sorted(source.path.rglob("*")):
        relative = path.relative_to(source.path)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.name in _NOT_ROWS or not _is_data(path):
            continue
        # The last match is the most specific: the file's own name comes after its folders'.
        splits = _SPLIT_NAME.findall(relative.as_posix().lower())
        split = cast(Split, splits[-1]) if splits else None
        found.append(DataFile(path, f"{source.label}/{relative.as_posix()}", split))
    if not found:
        raise DataError(f"{source.label}: the folder holds no data file; {accepted}")
    return found


def _is_data(path: Path) -> bool:
    return path.name.lower().endswith(ROW_SUFFIXES) and path.is_file()


def count_rows(source: Source) -> int | None:
    """Return how many rows a source has, readable or not; None where only parsing it would tell.

    Raises:
        DataError: If there is no such file or folder, it holds no data or cannot be read.
    """
    total = 0
    for file in data_files(source):
        with _errors_named(file):
            is_parquet = file.path.name.lower().endswith(".parquet")
            rows = _parquet_length(file) if is_parquet else _line_count(file)
        if rows is None:
            return None
        total += rows
    return total


def _line_count(file: DataFile) -> int | None:
    with _open_text(file.path) as lines:
        return None if _is_list(lines) else sum(1 for _ in lines)


def _parquet_length(file: DataFile) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file.path).num_rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.label}: not readable as parquet: {error}") from error


def parse_rows(
    files: Sequence[DataFile],
    parse: Callable[[dict[str, Any], Split | None], T],
    *,
    columns: Container[str],
    on_bad: OnBad | None = None,
) -> Iterator[T]:
    """Read files row by row and yield what `parse` makes of each row.

    Args:
        files: Read in this order.
        parse: Given a row's columns and the split of its file. Raises DataError, without saying
            where, for a row that is not what it should be.
        columns: The columns that `parse` looks at. Parquet files are not read for others, whose
            names are there with the value None.
        on_bad: Called with the message for each bad row, and reading goes on. Without it the
            first one raises.

    Raises:
        DataError: If a file cannot be read, or at the first bad row; the message says where.
        MissingColumnError: If `parse` raised it before it took any row of a file, also with
            `on_bad`: such a file holds other things, and all its rows would be bad. A file that
            names no split beside some that do is then left out, and `on_bad` told so once.
    """
    some_name_a_split = any(file.split for file in files)
    for file in files:
        took_any = False
        for row in _rows(file, columns):
            try:
                item = parse(_fields(row.content), file.split)
            except DataError as error:
                other_kind_of_file = not took_any and isinstance(error, MissingColumnError)
                beside = some_name_a_split and file.split is None
                if on_bad is None or (other_kind_of_file and not beside):
                    raise type(error)(f"{row.where}: {error}") from error
                on_bad(f"{row.where}: {error}")
                if other_kind_of_file:
                    break
                continue
            took_any = True
            yield item


def _fields(content: object | DataError) -> dict[str, Any]:
    if isinstance(content, DataError):
        raise content
    if not isinstance(content, dict):
        raise DataError(f"a row must be an object, got {reprlib.repr(content)}")
    return content


class _Row(NamedTuple):
    """One row: which it is, and what it holds or why that cannot be known."""

    where: str
    content: object | DataError


def _rows(file: DataFile, columns: Container[str]) -> Iterator[_Row]:
    name = file.path.name.lower()
    with _errors_named(file):
        if name.endswith(".parquet"):
            yield from _parquet_rows(file, columns)
        elif name.endswith(TEXT_SUFFIX):
            yield from _text_rows(file)
        else:
            yield from _json_rows(file)


@contextmanager
def _errors_named(file: DataFile) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file.label}: cannot be read: {error}") from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _json_rows(file: DataFile) -> Iterator[_Row]:
    with _open_text(file.path) as lines:
        yield from _listed_rows(file, lines) if _is_list(lines) else _line_rows(file, lines)


def _is_list(lines: IO[str]) -> bool:
    """Whether a file is one JSON list, and not JSON lines; it is left at its beginning."""
    # On the Hub a list is sometimes called .jsonl and lines .json: the first character tells.
    is_list = lines.read(1000).lstrip().startswith("[")
    lines.seek(0)
    return is_list


def _listed_rows(file: DataFile, lines: IO[str]) -> Iterator[_Row]:
    number = 0
    try:
        for number, item in enumerate(_list_items(lines), 1):
            yield _Row(f"{file.label}: row {number}", item)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{file.label}: not JSON: after row {number}: {why}") from error


def _list_items(lines: IO[str]) -> Iterator[object]:
    """Yield the items of a JSON list, holding little more of it than the next one.

    Raises:
        ValueError: If it is not JSON.
    """
    decoder, first = json.JSONDecoder(), True
    text = lines.read(_LIST_CHUNK)
    at = text.index("[") + 1
    while True:
        try:
            at = _after_space(text, at)
            if first and text[at : at + 1] == "]":
                break
            item, end = decoder.raw_decode(text, at)
            end = _after_space(text, end)
            if text[end : end + 1] not in {",", "]"}:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
        except ValueError:
            # What is there may be the start of an item that is whole in what follows.
            more = lines.read(max(_LIST_CHUNK, len(text) - at))
            if not more:
                raise
            text, at = text[at:] + more, 0
            continue
        yield item
        at, first = end, False
        if text[at] == "]":
            break
        at += 1
    if (text[at + 1 :] + lines.read()).strip():
        raise json.JSONDecodeError("Extra data", text, at + 1)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _line_rows(file: DataFile, lines: IO[str]) -> Iterator[_Row]:
    number = 0
    for number, line in enumerate(lines, 1):
        content = _json(line) if line.strip() else DataError("the line is empty")
        yield _Row(f"{file.label}: line {number}", content)
    if not number:
        yield _Row(file.label, DataError("the file is empty"))


def _json(text: str) -> object | DataError:
    try:
        return cast(object, json.loads(text))
    except (ValueError, RecursionError) as error:
        return DataError(f"not JSON: {error}")


def _text_rows(file: DataFile) -> Iterator[_Row]:
    with _open_text(file.path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _Row(f"{file.label}: line {number}", {"prompt": line.strip()})


def _parquet_rows(file: DataFile, columns: Container[str]) -> Iterator[_Row]:
    import pyarrow  # here, since most sources are JSON and this import takes a while
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in columns]
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                for fields in batch.to_pylist():
                    number += 1
                    yield _Row(f"{file.label}: row {number}", dict.fromkeys(names) | fields)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.label}: not readable as parquet: {error}") from error
