"""What goes over the wire, without its transport: requests, answers, refusals, pages, ranges."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

Origin = Literal["hub", "cdn"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request, its body read.

    Attributes:
        path: As it was sent, percent-encoded: a revision may hold an encoded slash.
        query: As it was sent, without the question mark.
        body: The bytes, or a temporary file of them if they are many.
        base: Scheme, host and port as the client addressed us; every link has to start with it,
            since to the client `localhost` and `127.0.0.1` are two servers.
        cdn: The same host with the port of the second origin.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes | Path
    base: str
    cdn: str

    @property
    def data(self) -> bytes:
        """The body in memory."""
        return self.body if isinstance(self.body, bytes) else self.body.read_bytes()

    @property
    def json(self) -> Json:
        """The body as a JSON object; no body is an empty one."""
        try:
            value = json.loads(self.data or b"{}")
        except ValueError as error:
            raise Refusal(400, f"Invalid JSON in request body: {error}") from error
        return value if isinstance(value, dict) else {}

    def values(self, name: str) -> list[str]:
        """Return all values of a query parameter."""
        pairs = parse_qsl(self.query, keep_blank_values=True)
        return [value for key, value in pairs if key in (name, f"{name}[]")]

    def value(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return next(iter(self.values(name)), default)

    def flag(self, name: str) -> bool:
        """Return whether a query parameter says yes."""
        return self.value(name).lower() in ("true", "1")


@dataclass
class Answer:
    """One answer.

    Attributes:
        body: The bytes, or the file that has them.
        ranged: Whether the client may ask for a part of the body.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    ranged: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size


class Refusal(Exception):
    """An answer that says no, from anywhere below a handler.

    Args:
        status: The HTTP status.
        message: Goes into `X-Error-Message` and the body.
        code: Goes into `X-Error-Code`, from which the client picks its exception.
        headers: More headers.
        body: More keys of the JSON body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: dict[str, str] | None = None,
        body: Json | None = None,
    ) -> None:
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        shown = {"X-Error-Message": re.sub(r"\s+", " ", message)}
        self.answer = json_answer({"error": message, **(body or {})}, status=status)
        self.answer.headers |= shown | codes | (headers or {})


def json_answer(
    value: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Answer:
    """Return a value as JSON."""
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, kind | (headers or {}), json.dumps(value).encode())


def page(request: Request, rows: Sequence[object], *, size: int) -> Answer:
    """Return one page of rows as JSON, with a `Link` to the next one if there are more."""
    start = int(request.value("cursor", "0"))
    headers = {}
    if start + size < len(rows):
        pairs = [pair for pair in parse_qsl(request.query) if pair[0] != "cursor"]
        following = urlencode([*pairs, ("cursor", str(start + size))])
        headers["Link"] = f'<{request.base}{request.path}?{following}>; rel="next"'
    return json_answer(rows[start : start + size], headers=headers)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last that a `Range` header asks for.

    None if it asks for no range that we understand: the whole body is the right answer then.

    Raises:
        Refusal: With status 416 if the range starts past the end.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= end:
        unsatisfied = {"Content-Range": f"bytes */{size}"}
        raise Refusal(416, "Requested range not satisfiable", headers=unsatisfied)
    return start, end


def timestamp(seconds: float) -> str:
    """Return a time as the Hub writes it, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
