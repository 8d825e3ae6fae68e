"""Comparisons that a command is given: where they came from, and which they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from morlaif_hub.cli.command import hint
from morlaif_hub.cli.progress import Progress
from morlaif_hub.comparisons import Comparison, read_comparisons
from morlaif_hub.errors import DataError
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.sampling import PAIRS_FILE
from morlaif_hub.sources import count_rows, resolve_source, source_sha256
from morlaif_hub.workspace import Workspace

SHOWN = 5
"""How many rows that cannot be read are named."""
TOLERATED = 0.05
"""Share of the rows; with more that cannot be read, a file is damaged or of another kind."""


class Pairs(NamedTuple):
    """Comparisons and, for manifests, the name, commit and hash of what they were read from."""

    comparisons: list[Comparison]
    source: SourceRecord


class PairStream:
    """Comparisons of a source, read one by one, once.

    A few rows that cannot be read are left out: real sets of human choices have some, with an
    empty response or with prompts that differ. With more than `TOLERATED` of them reading ends in
    an error, as soon as that is certain.

    The hash is that of the file, as `sha256sum` prints it; of several files, it is that of what
    `sha256sum` prints for them in order.

    Args:
        source: As for `read_comparisons`.
        limit: Stop after so many comparisons.

    Attributes:
        source: Its name, commit and hash.
        bad: How many rows were left out so far since they cannot be read.
        repeated: How many were left out so far since their pair was there before.

    Raises:
        DataError: If the source is missing or, while it is read, if it has no comparison or has
            too many rows that cannot be read.
    """

    def __init__(self, source: str | Path, *, limit: int | None = None) -> None:
        self._found = resolve_source(source)
        self.source = SourceRecord(
            name=self._found.name,
            revision=self._found.revision,
            sha256=source_sha256(self._found),
        )
        self._limit = limit
        self._rows: int | None = None
        self.bad = self.repeated = self._taken = 0
        self._shown: list[str] = []

    def most(self) -> int | None:
        """Return how many comparisons there are at most, if that can be told cheaply."""
        self._rows = count_rows(self._found)
        known = [number for number in (self._rows, self._limit) if number is not None]
        return min(known, default=None)

    def __iter__(self) -> Iterator[Comparison]:
        found = self._found
        # A Hub data set is pinned, so that the comparisons are of the commit that is recorded.
        pinned = found.path if found.revision is None else f"{found.name}@{found.revision}"
        try:
            for item in read_comparisons(
                pinned, limit=self._limit, on_bad=self._leave_out, on_repeat=self._repeat
            ):
                self._taken += 1
                yield item
        except DataError as error:
            if self.bad and not self._taken:  # that nothing can be read says less than why
                raise DataError(self._shown[0]) from error
            raise
        self._check(self.bad + self.repeated + self._taken)

    def tell(self) -> None:
        """Say on stderr which rows were left out, and why."""
        if self.bad:
            shown = "; ".join(self._shown) + ("; ..." if self.bad > SHOWN else "")
            rows = "1 row is" if self.bad == 1 else f"{self.bad:,} rows are"
            hint(f"{rows} left out, beside {self._taken:,} that can be read: {shown}")
        if self.repeated:
            rows = "1 row repeats" if self.repeated == 1 else f"{self.repeated:,} rows repeat"
            hint(f"{rows} a pair that was there before; each pair counts once")

    def _repeat(self) -> None:
        self.repeated += 1

    def _leave_out(self, why: str) -> None:
        self.bad += 1
        if len(self._shown) < SHOWN:
            self._shown.append(why)
        # The rest of the rows, or of those within the limit, may all be good.
        most = [self._rows] if self._rows is not None else []
        most += [self.bad + self._limit] if self._limit is not None else []
        if most:
            self._check(min(most))

    def _check(self, rows: int) -> None:
        if self.bad > TOLERATED * rows:
            raise DataError(self._shown[0])


def pair_stream(
    source: str | None, workspace: Workspace, *, limit: int | None = None
) -> PairStream:
    """Return a source's comparisons as a stream, or those that were sampled into the workspace.

    Raises:
        DataError: As `PairStream`, or if none were named and none were sampled.
    """
    sampled = workspace.pairs / PAIRS_FILE
    if source is None and not sampled.is_file():
        raise DataError(
            f"no --pairs were given and the workspace {workspace.root} has none; name a file, a "
            "folder or a Hub data set, or sample some with morlaif-hub sample-pairs"
        )
    return PairStream(sampled if source is None else source, limit=limit)


def shown(stream: PairStream, progress: Progress) -> Iterator[Comparison]:
    """Yield the comparisons of a stream, show how far it is, and say at its end what it left out.

    Raises:
        DataError: As `PairStream`.
    """
    progress.start("reading pairs", stream.most())
    for comparison in stream:
        progress.advance(1)
        yield comparison
    progress.finish()
    stream.tell()


def read_pairs(source: str | None, workspace: Workspace, *, limit: int | None = None) -> Pairs:
    """Return the comparisons of a source, or those that were sampled into the workspace.

    Rows that cannot be read are left out as in a `PairStream`, and stderr says which and why.

    Raises:
        DataError: As `pair_stream`.
    """
    stream = pair_stream(source, workspace, limit=limit)
    comparisons = list(stream)
    stream.tell()
    return Pairs(comparisons, stream.source)
