"""Comparisons that a command is given: where they came from, and which they are."""

from pathlib import Path
from typing import NamedTuple

from morlaif_hub.cli.command import hint
from morlaif_hub.comparisons import Comparison, read_comparisons
from morlaif_hub.errors import DataError
from morlaif_hub.hub.manifest import SourceRecord
from morlaif_hub.sampling import PAIRS_FILE
from morlaif_hub.sources import resolve_source, source_sha256
from morlaif_hub.workspace import Workspace

SHOWN = 5
"""How many rows that cannot be read are named."""
TOLERATED = 0.05
"""Share of the rows; with more that cannot be read, a file is damaged or of another kind."""


class Pairs(NamedTuple):
    """Comparisons and, for manifests, the name, commit and hash of what they were read from."""

    comparisons: list[Comparison]
    source: SourceRecord


def read_pairs(source: str | None, workspace: Workspace, *, limit: int | None = None) -> Pairs:
    """Return the comparisons of a source, or those that were sampled into the workspace.

    A few rows that cannot be read are left out, and stderr says which and why: real sets of human
    choices have some, with an empty response or with prompts that differ.

    The hash is that of the file, as `sha256sum` prints it; of several files, it is that of what
    `sha256sum` prints for them in order.

    Raises:
        DataError: If more than `TOLERATED` of them cannot be read, or none were named and none
            were sampled.
    """
    sampled = workspace.pairs / PAIRS_FILE
    if source is None and not sampled.is_file():
        raise DataError(
            f"no --pairs were given and the workspace {workspace.root} has none; name a file, a "
            "folder or a Hub data set, or sample some with morlaif-hub sample-pairs"
        )
    found = resolve_source(sampled if source is None else source)
    # A Hub data set is pinned, so that the comparisons are of the commit that is recorded.
    pinned = found.path if found.revision is None else f"{found.name}@{found.revision}"
    comparisons = _readable(pinned, limit)
    sha256 = source_sha256(found)
    return Pairs(comparisons, SourceRecord(name=found.name, revision=found.revision, sha256=sha256))


def _readable(source: str | Path, limit: int | None) -> list[Comparison]:
    bad: list[str] = []
    try:
        comparisons = list(read_comparisons(source, limit=limit, on_bad=bad.append))
    except DataError as error:
        raise (DataError(bad[0]) if bad else error) from error
    if len(bad) > TOLERATED * (len(bad) + len(comparisons)):
        raise DataError(bad[0])
    if bad:
        shown = "; ".join(bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
        rows = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
        hint(f"{rows} left out, beside {len(comparisons):,} that can be read: {shown}")
    return comparisons
