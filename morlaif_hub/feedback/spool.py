"""Comparisons on disk, to go through more than once, and what is known of each in a few bytes."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison
from morlaif_hub.distinct import Distinct
from morlaif_hub.errors import WorkspaceError
from morlaif_hub.feedback.bias import HUMAN_SIDES
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.sources import Split

SPLITS: dict[Split | None, int] = {None: 0, "train": 1, "test": 2}
"""How `Spool.splits` writes the side of the source's own split."""

_ID_BYTES = 32


class Spool:
    """Comparisons, each id once, in a file.

    They take some 34 bytes of memory each. One iteration at a time goes through them.

    Args:
        file: Empty.
        comparisons: Read to their end, or to the limit. Of repeats the first counts.
        limit: Keep so many.

    Attributes:
        prompt_ids: The id of each one's prompt, as ASCII; shape (n,).
        splits: As in `SPLITS`; shape (n,).
        human_sides: What people chose, as in `bias.HUMAN_SIDES`; shape (n,).

    Raises:
        WorkspaceError: If there is no room for the file.
    """

    def __init__(
        self, file: IO[bytes], comparisons: Iterable[Comparison], *, limit: int | None = None
    ) -> None:
        self._file = file
        prompt_ids, splits, sides = bytearray(), bytearray(), bytearray()
        with Distinct() as seen:
            new = (item for item in comparisons if seen.add(item.id))
            for comparison in islice(new, limit):
                prompt_ids += comparison.prompt_id.encode()
                splits.append(SPLITS[comparison.split])
                sides.append(int(HUMAN_SIDES[comparison.human_choice]) & 0xFF)
                self._write(_line(comparison))
        self._write(b"", flush=True)
        self.prompt_ids: NDArray[np.bytes_] = np.frombuffer(prompt_ids, dtype=f"S{_ID_BYTES}")
        self.splits: NDArray[np.int8] = np.frombuffer(splits, dtype=np.int8)
        self.human_sides: NDArray[np.int8] = np.frombuffer(sides, dtype=np.int8)

    def __len__(self) -> int:
        return len(self.splits)

    def __iter__(self) -> Iterator[Comparison]:
        self._file.seek(0)
        for line in self._file:
            prompt, response_a, response_b, choice, split = json.loads(line)
            yield Comparison(tuple(prompt), response_a, response_b, choice, split)

    def _write(self, line: bytes, *, flush: bool = False) -> None:
        try:
            self._file.write(line)
            if flush:
                self._file.flush()
        except OSError as error:
            raise WorkspaceError(
                f"the pairs cannot be kept in {cache_folder()} while they are judged: {error}. "
                "Set MORLAIF_CACHE to a folder with more room"
            ) from error


@contextmanager
def spooled(comparisons: Iterable[Comparison], *, limit: int | None = None) -> Iterator[Spool]:
    """Keep comparisons in a file that this process alone can read and that vanishes with it.

    Args:
        comparisons: As for `Spool`.
        limit: As for `Spool`.

    Raises:
        WorkspaceError: If there is no room for the file in the cache folder.
    """
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        yield Spool(file, comparisons, limit=limit)


def _line(comparison: Comparison) -> bytes:
    fields = (
        comparison.prompt,
        comparison.response_a,
        comparison.response_b,
        comparison.human_choice,
        comparison.split,
    )
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
