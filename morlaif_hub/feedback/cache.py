"""Verdicts kept on disk, so that no question is paid for, or waited for, twice.

A verdict is kept under the content that it depends on: who judged (spec, weights, prompts), the
principle's text, and the comparison with its orientation. Several processes may use one cache.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from morlaif_hub.errors import WorkspaceError
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import JUDGES, Judge, Progress, Question, RemoteJudge, Verdict, ask

CACHE_NAME = "verdicts.sqlite"
QUESTIONS_AT_ONCE = 128
SCORING_VERSION = "1"  # raise it when our judges come to other verdicts from the same prompts
_WAIT = 60.0  # seconds for another process to finish writing

_CREATE = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY,
    probability_a_first REAL NOT NULL,
    probability_a_second REAL NOT NULL
) WITHOUT ROWID
"""
_SELECT = """
SELECT key, probability_a_first, probability_a_second FROM verdicts
WHERE key IN (SELECT value FROM json_each(?))
"""
_INSERT = "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)"


class VerdictCache:
    """Verdicts in an SQLite file that its owner alone can read.

    Args:
        path: The file; made if there is none. By default in the cache folder.

    Raises:
        WorkspaceError: Here and from every method, if the file cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / CACHE_NAME
        with _errors_named(self.path):
            # SQLite gives its two companion files the permissions of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
            self._connection = sqlite3.connect(self.path, timeout=_WAIT)
            _write_ahead(self._connection)
            with self._connection:
                self._connection.execute(_CREATE)

    def get_many(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return what a judge answered to each question before; None where it did not."""
        keys = _keys(judge, questions)
        with _errors_named(self.path):
            rows = self._connection.execute(_SELECT, (json.dumps(keys),)).fetchall()
        found = {key: Verdict(a_first, a_second) for key, a_first, a_second in rows}
        return [found.get(key) for key in keys]

    def put_many(
        self, judge: Judge, questions: Sequence[Question], *, verdicts: Sequence[Verdict]
    ) -> None:
        """Keep a judge's answers; when this returns, they survive a crash."""
        rows = [
            (key, verdict.probability_a_first, verdict.probability_a_second)
            for key, verdict in zip(_keys(judge, questions), verdicts, strict=True)
        ]
        with _errors_named(self.path), self._connection:
            self._connection.executemany(_INSERT, rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class CachedJudge:
    """A judge that looks its answers up first, and keeps new ones as they come.

    New questions are asked in portions, so that whoever is stopped loses at most one of them.

    Attributes:
        asked: How many questions the judge itself answered, by the principle's name.
    """

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.judge, self.cache = judge, cache
        self.asked: Counter[str] = Counter()

    @property
    def spec(self) -> str:
        """As the judge's own."""
        return self.judge.spec

    @property
    def orders(self) -> bool:
        """As the judge's own."""
        return self.judge.orders

    @property
    def base(self) -> BaseIdentity | None:
        """As the judge's own."""
        return self.judge.base

    @property
    def prompt_sha256(self) -> str:
        """As the judge's own."""
        return self.judge.prompt_sha256

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Verdict]:
        """Return one verdict for each question, in order.

        Raises:
            JudgeError: If the judge gives no usable answer; earlier portions are kept.
            WorkspaceError: If the cache cannot be used.
        """
        found = self.cache.get_many(self.judge, questions)
        missing = [i for i, verdict in enumerate(found) if verdict is None]
        if progress and len(missing) < len(questions):
            progress(len(questions) - len(missing))
        answers = {i: verdict for i, verdict in enumerate(found) if verdict is not None}
        for portion in self._portions(questions, missing):
            asked = [questions[i] for i in portion]
            verdicts = ask(self.judge, asked, progress=progress)
            self.cache.put_many(self.judge, asked, verdicts=verdicts)
            self.asked.update(question.principle.name for question in asked)
            answers.update(zip(portion, verdicts, strict=True))
        return [answers[i] for i in range(len(questions))]

    def _portions(
        self, questions: Sequence[Question], missing: Sequence[int]
    ) -> Iterator[list[int]]:
        """Yield the missing questions, those on one prompt together: judges share its work."""
        judge = self.judge
        limit = judge.questions_at_once if isinstance(judge, RemoteJudge) else QUESTIONS_AT_ONCE
        by_prompt: dict[str, list[int]] = {}
        for i in missing:
            by_prompt.setdefault(questions[i].comparison.prompt_id, []).append(i)
        portion: list[int] = []
        for of_one in by_prompt.values():
            if portion and len(portion) + len(of_one) > limit:
                yield portion
                portion = []
            portion.extend(of_one)
        if portion:
            yield portion


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to SQLite's write-ahead log, in which readers and a writer do not block each other."""
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # SQLite waits for other processes by itself, but not for one that switches just now.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _keys(judge: Judge, questions: Sequence[Question]) -> list[str]:
    weights = judge.base.weights_sha256 if judge.base else None
    # A plugin's answers are those of its version; ours change with prompts, spec and weights.
    package = JUDGES.package(judge.spec.partition(":")[0])
    identity = [SCORING_VERSION, package, judge.spec, weights, judge.prompt_sha256]
    return [_key(identity, question) for question in questions]


def _key(identity: Sequence[str | None], question: Question) -> str:
    comparison, principle = question
    orientation = "ab" if comparison.response_a < comparison.response_b else "ba"
    parts = [*identity, principle.sha256(), comparison.id, orientation]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise WorkspaceError(
            f"{path}: the cache of verdicts cannot be used: {error}. Set MORLAIF_CACHE to a folder "
            "that can be written; if the file is damaged, delete it, and judges are asked again"
        ) from error
