"""An OpenAI-compatible server on the loopback that answers late and keeps to a limit.

It is not the bottleneck: one process answers a few thousand requests a second. It runs until its
standard input is closed, and writes its port to standard output first.

    python -m benchmarks.feedback_server LATENCY_SECONDS REQUESTS_PER_MINUTE   # 0 for no limit
"""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast
from urllib.request import urlopen

from benchmarks.children import ROOT

BETTER, WORSE = "a helpful answer", "an unhelpful one"
"""Responses between which the server chooses, whichever is shown first."""
SHARE = 0.8
_BURST = 0.1  # seconds of its limit that it takes at once


@dataclass
class Counts:
    """What a server did.

    Attributes:
        answered: Requests with an answer.
        refused: Requests with a 429.
        at_once: The most that waited for an answer at one time.
    """

    answered: int = 0
    refused: int = 0
    at_once: int = 0


class Limit:
    """An allowance of requests that fills up evenly.

    Args:
        per_minute: How many; 0 for no limit.
    """

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60.0
        self._most = max(1.0, self._rate * _BURST)
        self._level, self._filled = self._most, time.monotonic()

    def take(self) -> float:
        """Take one request's share: 0 if it was there, or else the seconds until it is."""
        if not self.per_minute:
            return 0.0
        now = time.monotonic()
        self._level = min(self._most, self._level + self._rate * (now - self._filled))
        self._filled = now
        if self._level < 1.0:
            return (1.0 - self._level) / self._rate
        self._level -= 1.0
        return 0.0

    @property
    def headers(self) -> str:
        """What is told of it with every answer."""
        if not self.per_minute:
            return ""
        stated = {"limit": self.per_minute, "remaining": max(0, int(self._level))}
        lines = [f"x-ratelimit-{name}-requests: {value:.0f}\r\n" for name, value in stated.items()]
        return "".join(lines)


@contextmanager
def serving(*, latency: float, rpm: float) -> Iterator[str]:
    """Run a server in a process of its own and yield the address of its API.

    Args:
        latency: Seconds from a request to its answer.
        rpm: Requests a minute that it answers; 0 for no limit.
    """
    asked = ["-m", "benchmarks.feedback_server", str(latency), str(rpm)]
    process = subprocess.Popen(
        [sys.executable, *asked], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:  # closes its input, on which it ends, and waits
        port = process.stdout.readline().strip() if process.stdout else ""
        if not port:
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{port}/v1"


def counts(url: str) -> Counts:
    """Return what a server did so far.

    Args:
        url: Its address.
    """
    with urlopen(url.removesuffix("/v1") + "/counts", timeout=30) as answer:
        return Counts(**json.loads(answer.read()))


def completion(letter: str) -> dict[str, Any]:
    """Return a completion of one letter with log-probabilities.

    Args:
        letter: The one with probability `SHARE`.
    """
    other = "B" if letter == "A" else "A"
    top = [
        {"token": token, "bytes": None, "logprob": math.log(share)}
        for token, share in ((letter, SHARE), (other, 1.0 - SHARE))
    ]
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": letter, "refusal": None},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}], "refusal": None},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }


class _Connection(asyncio.Protocol):
    def __init__(self, latency: float, limit: Limit, done: Counts) -> None:
        self._latency, self._limit, self._done = latency, limit, done
        self._answers = {letter: json.dumps(completion(letter)).encode() for letter in "AB"}
        self._got = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, rest = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        length = _length(head)
        if len(rest) < length:
            return
        self._got = rest[length:]
        if head.startswith(b"GET /counts"):
            self._send(200, json.dumps(asdict(self._done)).encode())
        else:
            self._answer(rest[:length])

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        _open.discard(self)

    def _answer(self, body: bytes) -> None:
        wait = self._limit.take()
        if wait:
            self._done.refused += 1
            fault = {"error": {"message": "too many requests", "code": "rate_limit_exceeded"}}
            self._send(429, json.dumps(fault).encode(), f"retry-after: {wait:.3f}\r\n")
            return
        _open.add(self)
        self._done.at_once = max(self._done.at_once, len(_open))
        first = body.rfind(BETTER.encode()) < body.rfind(WORSE.encode())
        loop = asyncio.get_running_loop()
        loop.call_later(self._latency, self._late, self._answers["A" if first else "B"])

    def _late(self, answer: bytes) -> None:
        _open.discard(self)
        self._done.answered += 1
        if not self._transport.is_closing():
            self._send(200, answer)

    def _send(self, status: int, body: bytes, headers: str = "") -> None:
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{self._limit.headers}"
            f"{headers}content-length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)


_open: set[_Connection] = set()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def _main(latency: float, rpm: float) -> None:
    done, limit, loop = Counts(), Limit(rpm), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(latency, limit, done), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 who started it reads this
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1]), float(sys.argv[2])))
