"""A small OpenAI-compatible server on the loopback, with faults that can be switched on."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass
class Reply:
    """What the server sends: a status, headers and a body, maybe late, maybe cut short."""

    body: object
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False


def completion(
    *contents: str, top: dict[str, float] | None = None, finish: str = "stop", **usage: int
) -> Body:
    """Return a completion with a choice for each content, and log-probabilities if given."""
    logprobs = None
    if top is not None:
        rows = [{"token": token, "logprob": value} for token, value in top.items()]
        logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": rows}]}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": i,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": logprobs,
            }
            for i, content in enumerate(contents)
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1} | usage,
    }


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """Return an error in OpenAI's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "code": code}}, status, named)


@dataclass
class Server:
    """A running server: its address and the bodies that it got, in order."""

    url: str
    got: list[Body] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def serving(answer: Callable[[Body, int], Reply | Body]) -> Iterator[Server]:
    """Serve `answer`, which gets a request's body and how many came before, until the end."""
    server = Server("")
    ready, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        server.keys.append(headers.get("authorization", ""))
        server.got.append(body)
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        reply = answer(body, len(server.got) - 1)
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        await asyncio.sleep(reply.delay)
        server.at_once -= 1
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        lines = [f"HTTP/1.1 {reply.status} X", "content-type: application/json"]
        lines += [f"content-length: {len(raw)}", *(f"{k}: {v}" for k, v in reply.headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw[: 10 if reply.cut else None])
        await writer.drain()
        return not reply.cut

    async def main() -> None:
        listening = await asyncio.start_server(handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        loops.append(asyncio.get_running_loop())
        ready.set()
        await over.wait()
        listening.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(5)
