"""Which ids were seen before, exactly, in memory that stays small however many there are."""

import sqlite3
from types import TracebackType

from morlaif_hub.errors import WorkspaceError

IN_MEMORY = 100_000
"""How many ids are kept in memory; with more, all of them move to a temporary file."""

_CREATE = "CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID"
_INSERT = "INSERT OR IGNORE INTO seen VALUES (?)"


class Distinct:
    """Ids that were seen: a set while they are few, then a file that vanishes with its process.

    Args:
        in_memory: How many to keep in memory.
    """

    def __init__(self, *, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._few: set[bytes] = set()
        self._many: sqlite3.Connection | None = None

    def add(self, identifier: str) -> bool:
        """Take an id of hex digits; return whether it is new.

        Raises:
            WorkspaceError: If the temporary file cannot be written.
        """
        key = bytes.fromhex(identifier)
        if self._many is None and len(self._few) < self._in_memory:
            before = len(self._few)
            self._few.add(key)
            return len(self._few) > before
        try:
            if self._many is None:
                self._many = _temporary(self._few)
                self._few = set()
            return self._many.execute(_INSERT, (key,)).rowcount == 1
        except sqlite3.Error as error:
            raise WorkspaceError(
                f"the ids of what was read cannot be kept in a temporary file: {error}. Set "
                "SQLITE_TMPDIR to a folder with more room"
            ) from error

    def close(self) -> None:
        """Forget all of them."""
        self._few = set()
        if self._many is not None:
            self._many.close()
            self._many = None

    def __enter__(self) -> "Distinct":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _temporary(ids: set[bytes]) -> sqlite3.Connection:
    # SQLite deletes a database without a name when it is closed, or when its process dies. It is
    # used by one thread at a time, which need not be the one that made it.
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16000"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute(_CREATE)
    connection.execute("BEGIN")  # and no commit ever, which would take longer than an id's insert
    connection.executemany(_INSERT, ((key,) for key in sorted(ids)))
    return connection
