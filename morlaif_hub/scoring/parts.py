"""Scores on disk: a folder of numbered parquet files, and a record of what they are scores of.

A part is written under a hidden name and then renamed, so it is there whole or not at all. Every
part holds the record too, so that one that was taken elsewhere still says what it is.

The columns are

* `id` and `prompt_id`: hashes of the comparison and of its prompt, as `Comparison` has them;
* `split`: `train`, `test` or null; `human_choice`: `a`, `b` or null;
* `<objective>_a` and `<objective>_b`, for every objective: the calibrated scores of response A and
  of response B, float32; higher is better on that principle.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import parquet
from torch import Tensor

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.members import Member
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import WorkspaceError
from morlaif_hub.hub.manifest import MANIFEST_NAME, SourceRecord, manifest_sha256
from morlaif_hub.messages import content_hash
from morlaif_hub.models.language_model import Dtype
from morlaif_hub.workspace import write_text

RECORD = "scores.json"
PART = "scores-{:06d}.parquet"
PARTS = "scores-*.parquet"
METADATA = b"morlaif_hub.scores"
"""Under which key a part holds the record, without the limit."""

_UNFINISHED = ".{}.{}.partial"
_HALTED = ".halted"
_LOCK = ".lock"
_TEXTS = ("id", "prompt_id", "split", "human_choice")


@dataclass(frozen=True)
class ScoredBy:
    """A preference model that scored.

    Attributes:
        objective: Its column's name.
        repo_id: Its repository on the Hub; None for a local folder.
        revision: Its commit there.
        sha256: Of its manifest, and so of all its files. Of one without a manifest: None on the
            Hub, where the commit tells; else of its files.
    """

    objective: str
    repo_id: str | None
    revision: str | None
    sha256: str | None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("morlaif-hub", "torch", "transformers", "peft")}


@dataclass(frozen=True)
class ScoresOf:
    """What scores are of. Where all of it is the same, so are the scores, up to rounding.

    Attributes:
        source: Where the comparisons were read from.
        members: What scored, a column for each.
        dtype: Of the weights that scored.
        limit: How many comparisons of the source were asked for; None for all.
        chunk: Comparisons of a part.
        versions: Of the libraries that scored.
    """

    source: SourceRecord
    members: tuple[ScoredBy, ...]
    dtype: Dtype = "float32"
    limit: int | None = None
    chunk: int = 256
    versions: Mapping[str, str] = field(default_factory=_versions)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @property
    def name(self) -> str:
        """A folder's name that others have only if they are scores of the same."""
        return f"{self.source.name.replace('/', '--')}-{content_hash(self.plain())[:8]}"


def scored_by(bank: PMBank) -> tuple[ScoredBy, ...]:
    """Return what a bank's members are, wherever they lie."""
    return tuple(
        ScoredBy(member.objective, member.repo_id, member.revision, _member_sha256(member))
        for member in bank.members
    )


def _member_sha256(member: Member) -> str | None:
    if (member.path / MANIFEST_NAME).is_file():
        return manifest_sha256(member.path)
    if member.revision is not None:
        return None
    from morlaif_hub.hub.remote_files import file_sha256  # here, since few banks need it

    files = sorted(path for path in member.path.iterdir() if path.is_file())
    return content_hash([[path.name, file_sha256(path)] for path in files])


class Parts:
    """A folder's parts, numbered from 0.

    Args:
        folder: Theirs alone.
        of: What they are scores of.
    """

    def __init__(self, folder: Path, of: ScoresOf) -> None:
        self.folder, self.of = folder, of
        self._lock: IO[bytes] | None = None
        self._made = False
        kept = json.dumps(_without_limit(of.plain()))
        columns = [(name, pyarrow.string()) for name in _TEXTS]
        for member in of.members:
            columns += [(f"{member.objective}_{side}", pyarrow.float32()) for side in "ab"]
        self.schema = pyarrow.schema(columns, metadata={METADATA: kept})

    def open(self) -> None:
        """Make the folder, or check that it holds scores of the same; note what is asked for now.

        A larger limit than before goes on where that one ended.

        Raises:
            WorkspaceError: If it holds other scores, fewer are asked for than before, another run
                is writing there, or it cannot be written.
        """
        record = self.folder / RECORD
        try:
            self._made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.folder / _LOCK)
            found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
            anything = any(not name.startswith(".") for name in self._names("*"))
            for name in self._names(_UNFINISHED.format("*", "*")):  # of a run that was killed
                (self.folder / name).unlink(missing_ok=True)
            self.resume()
        except (OSError, ValueError) as error:
            raise WorkspaceError(f"{self.folder} cannot be used for scores: {error}") from error
        now = self.of.plain()
        if found is None and anything:
            raise self._refusal(f"is not empty and has no {RECORD}")
        if found is not None:
            self._check_same(found, now)
        if found != now:
            write_text(record, json.dumps(now, indent=2, ensure_ascii=False) + "\n")

    def _check_same(self, found: Any, now: dict[str, Any]) -> None:
        if not isinstance(found, dict):
            raise self._refusal(f"has a {RECORD} that is not a record of scores")
        names = [key for key in {**now, **found} if key != "limit"]
        differences = [
            _difference(key, found.get(key), now.get(key))
            for key in names
            if found.get(key) != now.get(key)
        ]
        if differences:
            raise self._refusal(f"holds other scores: {'; '.join(differences)}")
        before, limit = found.get("limit"), now["limit"]
        if limit is not None and (before is None or before > limit):
            had = "all pairs" if before is None else f"the first {before:,} pairs"
            raise self._refusal(f"holds, or was to hold, {had} and not only the first {limit:,}")

    def _refusal(self, why: str) -> WorkspaceError:
        return WorkspaceError(f"{self.folder} {why}; choose another --output, or remove it")

    def path(self, number: int) -> Path:
        """Return where a part is, or will be."""
        return self.folder / PART.format(number)

    def read(self, number: int) -> pyarrow.Table | None:
        """Return a part; None if there is none, or what is there is damaged.

        Raises:
            WorkspaceError: If it is a part of other scores.
        """
        path = self.path(number)
        try:
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(use_threads=False)
        except (OSError, pyarrow.ArrowException):
            return None
        if not table.schema.equals(self.schema, check_metadata=True):
            raise self._refusal(f"holds a part of other scores, {path.name}")
        return table

    def kept(self) -> Iterator[pyarrow.Table]:
        """Yield the parts that are there, in order, whether or not another run goes on writing.

        Raises:
            WorkspaceError: If one is a part of other scores.
        """
        names = sorted(self._names(PARTS)) if self.folder.is_dir() else []
        for name in names:
            table = self.read(int(name.removeprefix("scores-").removesuffix(".parquet")))
            if table is not None:
                yield table

    def table(self, pairs: Sequence[Comparison], scores: Tensor) -> pyarrow.Table:
        """Return a part's rows.

        Args:
            pairs: The comparisons.
            scores: Of their responses, A and B in turn, shape (2 * pairs, objectives).
        """
        texts = [pyarrow.array([getattr(p, name) for p in pairs], "string") for name in _TEXTS]
        # Sides of one objective are neighbours: shape (objectives * 2, pairs).
        columns = scores.reshape(len(pairs), 2, -1).permute(2, 1, 0).flatten(0, 1).numpy()
        return pyarrow.table([*texts, *map(pyarrow.array, columns)], schema=self.schema)

    def write(self, number: int, table: pyarrow.Table) -> None:
        """Write a part, whole or not at all.

        Raises:
            WorkspaceError: If it cannot be written.
        """
        path = self.path(number)
        unfinished = path.with_name(_UNFINISHED.format(path.name, os.getpid()))
        try:
            parquet.write_table(table, unfinished, write_page_checksum=True)
            unfinished.replace(path)
        except OSError as error:
            raise WorkspaceError(f"{path} cannot be written: {error}") from error

    def check_last(self, count: int) -> None:
        """Check that there are no more parts than so many.

        Raises:
            WorkspaceError: If there are.
        """
        first = min((n for n in self._names(PARTS) if n >= PART.format(count)), default=None)
        if first is not None:
            raise self._refusal(f"holds parts after the last one, such as {first}")

    def tables(self, count: int) -> Iterator[pyarrow.Table]:
        """Yield the first parts in order.

        Raises:
            WorkspaceError: If one is not there any more.
        """
        for number in range(count):
            table = self.read(number)
            if table is None:
                raise WorkspaceError(f"{self.path(number)} cannot be read; run the command again")
            yield table

    def _names(self, pattern: str) -> Iterator[str]:
        """Yield the names in the folder, of which there may be very many."""
        with os.scandir(self.folder) as entries:
            yield from (entry.name for entry in entries if fnmatch(entry.name, pattern))

    @property
    def _halted(self) -> Path:
        return self.folder / _HALTED

    @property
    def halted(self) -> bool:
        """Whether one of the processes that write here has failed."""
        return self._halted.exists()

    def halt(self) -> None:
        """Let the other processes stop after the part that they are at."""
        with suppress(OSError):  # the error that is the reason counts
            self._halted.touch()

    def resume(self) -> None:
        """Forget that a process failed."""
        self._halted.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run write here."""
        if self._lock is not None:
            (self.folder / _LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def remove_if_empty(self) -> None:
        """Leave nothing of ours behind if nothing was scored."""
        if any(self._names(PARTS)):
            return
        (self.folder / RECORD).unlink(missing_ok=True)
        self.close()
        if self._made:
            with suppress(OSError):  # something else is there
                self.folder.rmdir()


def lock(path: Path) -> IO[bytes] | None:
    """Return an open file that no other run holds; closing it, however, lets go.

    Returns:
        None where the system has no such locks.

    Raises:
        WorkspaceError: If another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except BlockingIOError:
        current = False
    if not current:
        file.close()
        raise WorkspaceError(
            f"another run is writing scores into {path.parent}; wait for it, or choose another "
            "--output"
        )
    return file


def _without_limit(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key != "limit"}


def _difference(name: str, there: Any, now: Any) -> str:
    """Return in words which field differs, as deep inside as there is one."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [key for key in {**now, **there} if there.get(key) != now.get(key)]
        return _difference(f"{name}.{keys[0]}", there.get(keys[0]), now.get(keys[0]))
    if isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        differing = [i for i in range(len(now)) if there[i] != now[i]]
        return _difference(f"{name}[{differing[0]}]", there[differing[0]], now[differing[0]])
    return f"{name} is {json.dumps(there)} there and {json.dumps(now)} now"
