"""Verdicts kept on disk, so that no question is paid for, or waited for, twice.

A verdict is kept under the content that it depends on: who judged (spec, weights, prompts), the
principle's text, and the comparison with its orientation. Several processes may use one cache.
"""

import hashlib
import json
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from morlaif_hub.errors import JudgeError, WorkspaceError
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import (
    JUDGES,
    Answer,
    Judge,
    Progress,
    Question,
    RemoteJudge,
    StreamingJudge,
    Unanswered,
    Verdict,
    ask,
)

CACHE_NAME = "verdicts.sqlite"
QUESTIONS_AT_ONCE = 128
SCORING_VERSION = "1"  # raise it when our judges come to other verdicts from the same prompts
_LOOKED_UP = 1024  # questions at once in the cache
_SECONDS_TO_DISK = 1.0
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
            self._on_disk = -math.inf  # when the disk was last waited for
            _write_ahead(self._connection)
            with self._connection:
                self._connection.execute(_CREATE)

    def get_many(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return what a judge answered to each question before; None where it did not."""
        keys = verdict_keys(judge, questions)
        found = self.look_up(keys)
        return [found.get(key) for key in keys]

    def put_many(
        self, judge: Judge, questions: Sequence[Question], *, verdicts: Sequence[Verdict]
    ) -> None:
        """Keep a judge's verdicts, as `keep` does."""
        self.keep(dict(zip(verdict_keys(judge, questions), verdicts, strict=True)))

    def look_up(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Return the verdicts that are kept under some of these keys."""
        with _errors_named(self.path):
            rows = self._connection.execute(_SELECT, (json.dumps(keys),)).fetchall()
        return {key: Verdict(a_first, a_second) for key, a_first, a_second in rows}

    def keep(self, verdicts: Mapping[str, Verdict]) -> None:
        """Keep verdicts under their keys.

        When this returns, they survive a kill of the process. The disk is waited for once a second
        at most: when the power is cut, what was kept since then may be lost.
        """
        rows = [
            (key, verdict.probability_a_first, verdict.probability_a_second)
            for key, verdict in verdicts.items()
        ]
        now = time.monotonic()
        to_disk = now - self._on_disk > _SECONDS_TO_DISK
        with _errors_named(self.path):
            # Waiting for the disk at every portion would take longer than a fast judge.
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if to_disk else 'NORMAL'}")
            with self._connection:
                self._connection.executemany(_INSERT, rows)
        if to_disk:
            self._on_disk = now

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


class _Missing(NamedTuple):
    key: str
    question: Question


class CachedJudge:
    """A judge that looks its answers up first, and keeps new ones as they come.

    A streaming judge's answers are kept before it is given new questions, so whoever is stopped
    loses what was open at most. Other judges are asked in portions; one of them may be lost.

    Attributes:
        asked: How many questions the judge itself was asked, by the principle's name.
    """

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self.judge, self.cache = judge, cache
        self._package = package_of(judge)
        self.asked: Counter[str] = Counter()
        self._unanswered: dict[str, Unanswered] = {}

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
    ) -> list[Answer]:
        """Return one answer for each question, in order.

        Raises:
            JudgeError: If the judge gives no usable answer; earlier ones are kept.
            WorkspaceError: If the cache cannot be used.
        """
        self.fill(questions, progress=progress)
        return self.known(questions)

    def fill(self, questions: Iterable[Question], *, progress: Progress | None = None) -> None:
        """Ask what the cache has no answer to, each question once, and keep the answers.

        Args:
            questions: Any number; they are drawn as there is room for more.
            progress: Told how many of them are dealt with.

        Raises:
            JudgeError: If the judge gives no usable answer; earlier ones are kept.
            WorkspaceError: If the cache cannot be used.
        """
        progress = progress or _silent
        if isinstance(self.judge, StreamingJudge):
            self._stream(self.judge, questions, progress)
            return
        judge = self.judge
        limit = judge.questions_at_once if isinstance(judge, RemoteJudge) else QUESTIONS_AT_ONCE
        for window in _batched(questions, max(limit, _LOOKED_UP)):
            for portion in _portions(self._missing(window, progress), limit):
                asked = [question for _, question in portion]
                answers = ask(judge, asked, progress=progress)
                self._keep(
                    (key, question.principle.name, answer)
                    for (key, question), answer in zip(portion, answers, strict=True)
                )

    def missing(self, questions: Iterable[Question]) -> Iterator[Question]:
        """Yield the questions that `fill` would ask the judge; repeats may come again."""
        for window in _batched(questions, _LOOKED_UP):
            for _, question in self._missing(window, _silent):
                yield question

    def known(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers to questions that were given to `fill`, in order.

        Raises:
            JudgeError: If there is none to one of them.
        """
        keys = self._keys(questions)
        found = self.cache.look_up(keys)
        answers: list[Answer] = []
        for key in keys:
            answer = found.get(key) or self._unanswered.get(key)
            if answer is None:
                raise JudgeError(
                    f"{self.cache.path}: a verdict that was kept is gone; did something delete "
                    "the cache? Run again: only what is missing is asked"
                )
            answers.append(answer)
        return answers

    def _keys(self, questions: Sequence[Question]) -> list[str]:
        return verdict_keys(self.judge, questions, package=self._package)

    def _missing(
        self, window: Sequence[Question], progress: Progress, *, open_keys: Container[str] = ()
    ) -> list[_Missing]:
        """Return the questions without an answer, each once, and count the others as done."""
        keyed = dict(zip(self._keys(window), window, strict=True))
        found = self.cache.look_up(list(keyed))
        missing = [
            _Missing(key, question)
            for key, question in keyed.items()
            if not (key in found or key in self._unanswered or key in open_keys)
        ]
        if len(missing) < len(window):
            progress(len(window) - len(missing))
        return missing

    def _stream(
        self, judge: StreamingJudge, questions: Iterable[Question], progress: Progress
    ) -> None:
        # By the number under which the judge knows it: the key and the principle's name, and no
        # question, since a judge that works in batches may have very many of them open.
        open_questions: dict[int, tuple[str, str]] = {}
        open_keys: set[str] = set()

        def draw() -> Iterator[Question]:
            number = 0
            for window in _batched(questions, _LOOKED_UP):
                missing = self._missing(window, progress, open_keys=open_keys)
                open_keys.update(item.key for item in missing)
                for key, question in missing:
                    open_questions[number] = (key, question.principle.name)
                    number += 1
                    yield question

        drawn = draw()
        with closing(judge.stream(drawn)) as answers:
            for answered in answers:
                kept = [(*_taken(judge, open_questions, a.number), a.answer) for a in answered]
                self._keep(kept)
                open_keys.difference_update(key for key, _, _ in kept)
                progress(len(kept))
        if open_questions or next(drawn, None) is not None:
            raise JudgeError(
                f"judge {judge.spec!r} ended before it had answered all questions. This is a fault "
                "of the judge, not of the data"
            )

    def _keep(self, answered: Iterable[tuple[str, str, Answer]]) -> None:
        verdicts: dict[str, Verdict] = {}
        for key, principle, answer in answered:
            self.asked[principle] += 1
            if isinstance(answer, Verdict):
                verdicts[key] = answer
            elif isinstance(answer, Unanswered):
                self._unanswered[key] = answer
            else:
                raise JudgeError(
                    f"judge {self.spec!r} gave {answer!r}, which is no Verdict and not Unanswered. "
                    "This is a fault of the judge, not of the data"
                )
        self.cache.keep(verdicts)


def _taken(
    judge: Judge, open_questions: dict[int, tuple[str, str]], number: int
) -> tuple[str, str]:
    try:
        return open_questions.pop(number)
    except KeyError:
        raise JudgeError(
            f"judge {judge.spec!r} answered question {number}, which is not open. This is a fault "
            "of the judge, not of the data"
        ) from None


def _portions(missing: Sequence[_Missing], limit: int) -> Iterator[list[_Missing]]:
    """Yield missing questions, those on one prompt together: judges share its work."""
    by_prompt: dict[str, list[_Missing]] = {}
    for item in missing:
        by_prompt.setdefault(item.question.comparison.prompt_id, []).append(item)
    portion: list[_Missing] = []
    for of_one in by_prompt.values():
        if portion and len(portion) + len(of_one) > limit:
            yield portion
            portion = []
        portion.extend(of_one)
    if portion:
        yield portion


def _batched(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    iterator = iter(questions)
    while batch := list(islice(iterator, size)):
        yield batch


def _silent(_count: int) -> None:
    """Tell nobody."""


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


def verdict_keys(
    judge: Judge, questions: Sequence[Question], *, package: str | None = None
) -> list[str]:
    """Return under which key a judge's verdict on each question is kept: 64 hex digits.

    A judge that has a `cache_spec` shares its verdicts with those of the same, whatever their spec.
    It stays the same while questions are asked.

    Args:
        judge: Who is asked.
        questions: What is asked.
        package: What `package_of` returns, for who asks often: looking it up takes a while.
    """
    weights = judge.base.weights_sha256 if judge.base else None
    package = package or package_of(judge)
    identity = [SCORING_VERSION, package, _cache_spec(judge), weights, judge.prompt_sha256]
    return [_key(identity, question) for question in questions]


def package_of(judge: Judge) -> str:
    """Return the package, with its version, that a judge's kind comes from."""
    # A plugin's answers are those of its version; ours change with prompts, spec and weights.
    return JUDGES.package(_cache_spec(judge).partition(":")[0])


def _cache_spec(judge: Judge) -> str:
    return str(getattr(judge, "cache_spec", judge.spec))


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
