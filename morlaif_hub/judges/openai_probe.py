"""Finding out, once for each model of a server, how it answers and which parameters it takes."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import JudgeError, WorkspaceError
from morlaif_hub.hub.artifact import cache_folder
from morlaif_hub.judges.base import Question, Unanswered
from morlaif_hub.judges.openai_client import Exchange, RejectedError
from morlaif_hub.judges.openai_requests import (
    CUT_OFF,
    METHODS,
    Asking,
    Dialect,
    Method,
    request_body,
)
from morlaif_hub.principles import Principle

FOUND_NAME = "openai-methods.json"
_ADJUSTMENTS = 8
_QUESTION = Question(
    Comparison(
        ({"role": "user", "content": "What is the capital of France?"},),
        "It is Paris.",
        "It is Rome.",
    ),
    Principle(
        "correctness",
        "The reply is correct.",
        "The reply is wrong.",
        "A high score means that the reply is correct.",
    ),
)


@dataclass(frozen=True)
class _Tried:
    asking: Asking
    fault: str  # empty where it works


async def find_method(exchange: Exchange, asking: Asking, methods: tuple[Method, ...]) -> Asking:
    """Return how to ask a model, having tried methods in turn with one short question.

    Args:
        exchange: To the server.
        asking: What to send; its method does not count.
        methods: To try.

    Raises:
        StoppedError: If nothing more is asked.
        JudgeError: If none works; the message has the reason of each.
    """
    faults = []
    for method in methods:
        tried = await _try(exchange, replace(asking, method=method))
        if not tried.fault:
            return tried.asking
        asking = replace(asking, dialect=tried.asking.dialect)
        faults.append(f"{method}: {tried.fault}")
    raise JudgeError(f"{asking.model!r} gives no verdict that can be read; {'; '.join(faults)}")


async def _try(exchange: Exchange, asking: Asking) -> _Tried:
    seen: set[Dialect] = set()
    fault = ""
    for _ in range(_ADJUSTMENTS):
        seen.add(asking.dialect)
        dialect: Dialect | None = None
        try:
            reading = await exchange.read(
                asking, request_body(asking, _QUESTION, a_first=True), retry_malformed=False
            )
        except RejectedError as error:
            fault = str(error)
            dialect = asking.dialect.adjusted(fault)
        else:
            if not isinstance(reading, Unanswered):
                return _Tried(asking, "")
            fault = reading.reason
            if fault == CUT_OFF:
                dialect = replace(asking.dialect, thinking=True)
        if dialect is None or dialect in seen:
            break
        asking = replace(asking, dialect=dialect)
    return _Tried(asking, fault)


def kept_asking(key: str, asking: Asking) -> Asking | None:
    """Return how to ask as it was found out before; None if it was not."""
    found = _read(_path()).get(key, {})
    try:
        method, dialect = found["method"], Dialect(**found["dialect"])
    except (AttributeError, TypeError, KeyError):
        return None
    return replace(asking, method=method, dialect=dialect) if method in METHODS else None


def keep_asking(key: str, asking: Asking) -> None:
    """Keep what was found out for later runs.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    path = _path()
    found = {**_read(path), key: {"method": asking.method, "dialect": asdict(asking.dialect)}}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error}") from error


def _path() -> Path:
    return cache_folder() / FOUND_NAME


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
