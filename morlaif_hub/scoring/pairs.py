"""Scoring both responses of every comparison of a stream, with all processes of a run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow
from torch import Tensor

from morlaif_hub.comparisons import Comparison, Prompt
from morlaif_hub.errors import DataError, MorlaifHubError, WorkspaceError
from morlaif_hub.scoring.parts import Parts, ScoresOf
from morlaif_hub.scoring.processes import Processes


class Scorer(Protocol):
    """What scores; a `PMBank` does."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the columns that `score` returns, in order."""

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return float32 scores on the CPU, shape (responses, objectives)."""


@dataclass(frozen=True)
class ScoredPairs:
    """Scores in a folder; only as much of them is in memory as is asked for.

    Attributes:
        parts: Their files.
        objectives: What was scored.
        count: How many pairs they are of.
        new: How many of them were scored by this run, and not by one before.
    """

    parts: Parts
    objectives: tuple[str, ...]
    count: int
    new: int

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.parts.folder

    def tables(self) -> Iterator[pyarrow.Table]:
        """Yield all rows, part by part, in the order of the comparisons.

        Raises:
            WorkspaceError: If a part is not there any more.
        """
        return self.parts.tables(-(-self.count // self.parts.of.chunk))

    def first(self, count: int) -> list[dict[str, Any]]:
        """Return the first rows as plain values.

        Each has `id`, `human_choice` and, in `response_a` and `response_b`, scores by objective.
        """
        found = (row for table in self.tables() for row in table.to_pylist())
        return [
            {
                "id": row["id"],
                "human_choice": row["human_choice"],
                "response_a": {name: row[f"{name}_a"] for name in self.objectives},
                "response_b": {name: row[f"{name}_b"] for name in self.objectives},
            }
            for row in islice(found, count)
        ]


class _Tally(NamedTuple):
    """How many comparisons a process read and scored now, and whether it was told to stop."""

    read: int
    new: int
    stopped: bool


def score_pairs(
    bank: Scorer,
    comparisons: Iterable[Comparison],
    folder: Path,
    *,
    of: ScoresOf,
    progress: Callable[[int], None] | None = None,
) -> ScoredPairs:
    """Score both responses of every comparison, into parquet files that stay.

    Call it in every process of a run, with the same comparisons: all of them read all, and of `n`
    processes each scores every `n`-th part. What a folder holds already is not scored again,
    however many processes there were, and a run that was killed loses the parts it was at. At any
    time, the comparisons of one part are in memory. `scoring.parts` says what the files hold.

    Args:
        bank: What scores.
        comparisons: As many as there are of `of`.
        folder: For the files; all processes have to see it.
        of: What the scores are of; a folder of other scores is refused.
        progress: Told of every comparison that was just scored, or left to another process.

    Raises:
        DataError: If there is no comparison, or what the processes were given is not the same.
        WorkspaceError: If the folder holds other scores, or cannot be written.
        MorlaifHubError: As reading the comparisons or scoring them. All processes raise it, once
            each has finished the part that it was at.
    """
    processes = Processes()
    parts = Parts(folder, of)
    work = _Work(bank, parts, processes, progress)
    try:
        opened = processes.together(work.open)
        if any(plain != opened[0] for plain in opened):
            raise DataError(
                "the processes were given different pairs, or different preference models; pin "
                "them with @revision"
            )
        tallies = _all_scored(processes, parts, partial(work.score, comparisons))
    finally:
        parts.close()
    count = tallies[0].read
    if processes.main:
        parts.check_last(-(-count // of.chunk))
    return ScoredPairs(parts, bank.objectives, count, sum(tally.new for tally in tallies))


def _all_scored(processes: Processes, parts: Parts, score: Callable[[], _Tally]) -> list[_Tally]:
    """Return what all processes did; leave no trace of one that failed."""
    try:
        tallies = processes.together(score)
        if any(tally.stopped for tally in tallies):
            raise WorkspaceError(f"something else than this run stopped it: see {parts.folder}")
    except MorlaifHubError:
        if processes.main:
            parts.resume()  # all have stopped
            parts.remove_if_empty()
        raise
    return tallies


class _Work:
    """One process's share of a run."""

    def __init__(
        self,
        bank: Scorer,
        parts: Parts,
        processes: Processes,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._bank, self._parts, self._processes = bank, parts, processes
        self._tell = progress or (lambda _: None)

    def open(self) -> dict[str, Any]:
        """Open the folder, and return what it is for."""
        if self._processes.main:
            self._parts.open()
        return self._parts.of.plain()

    def score(self, comparisons: Iterable[Comparison]) -> _Tally:
        """Read all comparisons and score those of this process's parts."""
        read = new = 0
        stopped = False
        try:
            for number, pairs in enumerate(_chunks(comparisons, self._parts.of.chunk)):
                if stopped := self._parts.halted:
                    break
                read += len(pairs)
                if number % self._processes.count == self._processes.index:
                    new += self._score_part(number, pairs)
                else:
                    self._tell(len(pairs))
            if not read and not stopped:
                raise DataError("there is no comparison to score")
        except BaseException:  # Ctrl-C as well: the others must not wait for this process
            if self._processes.count > 1:
                self._parts.halt()
            raise
        return _Tally(read, new, stopped)

    def _score_part(self, number: int, pairs: Sequence[Comparison]) -> int:
        """Score those of a part's comparisons that have no scores yet; return how many."""
        kept = self._parts.read(number)
        known = [] if kept is None else kept["id"].to_pylist()
        if known != [pair.id for pair in pairs[: len(known)]]:
            raise WorkspaceError(
                f"{self._parts.path(number)} has scores of other pairs; choose another --output, "
                "or remove it"
            )
        self._tell(len(known))
        rest = pairs[len(known) :]
        if rest:
            scores = self._bank.score(
                [pair.prompt for pair in rest for _ in range(2)],
                [text for pair in rest for text in (pair.response_a, pair.response_b)],
                progress=(told := _PairsTold(len(rest), self._tell)),
            )
            told.finish()
            table = self._parts.table(rest, scores)
            self._parts.write(number, pyarrow.concat_tables([kept, table] if kept else [table]))
        return len(rest)


class _PairsTold:
    """Turns a bank's progress, in responses, into pairs of a part."""

    def __init__(self, pairs: int, tell: Callable[[int], None]) -> None:
        self._pairs, self._tell = pairs, tell
        self._responses = self._told = 0

    def __call__(self, responses: int) -> None:
        self._responses += responses
        self._reach(min(self._responses // 2, self._pairs))

    def finish(self) -> None:
        """Tell of those that were not told of."""
        self._reach(self._pairs)

    def _reach(self, pairs: int) -> None:
        self._tell(pairs - self._told)
        self._told = pairs


def _chunks(comparisons: Iterable[Comparison], size: int) -> Iterator[list[Comparison]]:
    iterator = iter(comparisons)
    while chunk := list(islice(iterator, size)):
        yield chunk
