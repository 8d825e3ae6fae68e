"""HTTP on two ports, in a thread of its own: reads requests, lets faults strike, sends answers.

The handlers are ordinary functions and run in worker threads, so that neither the disk nor a
callback that itself talks to this server holds up other requests.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from aiohttp import web

from tests.hub_server.faults import Fault, Plan
from tests.hub_server.wire import Answer, Origin, Refusal, Request, byte_range

Handle = Callable[[Origin, Request], Answer]

_CHUNK = 1 << 20
_THREADS = 32


@dataclass
class Record:
    """One line of the log.

    Attributes:
        path: As it was sent, percent-encoded.
        query: As it was sent, without the question mark.
        status: What was answered; None if the connection was cut first.
        auth: The `Authorization` header.
        bytes_in: Bytes of the request's body that were read.
        bytes_out: Bytes of the answer's body that were sent.
        fault: The kind of fault that struck, if any.
    """

    method: str
    path: str
    query: str
    origin: Origin
    headers: dict[str, str]
    auth: str | None
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None


class Transport:
    """Two listening ports on one host.

    Args:
        handle: Answers a request; runs in a worker thread.
        plan: What is to go wrong.
        temporary: Returns a path for a body too large for memory.
    """

    host = "127.0.0.1"

    def __init__(self, handle: Handle, *, plan: Plan, temporary: Callable[[], Path]) -> None:
        self.log: list[Record] = []
        self.ports: dict[Origin, int] = {}
        self._handle, self._plan, self._temporary = handle, plan, temporary
        self._stop: Callable[[], object] | None = None
        self._thread: Thread | None = None

    def start(self, *, hub_port: int, cdn_port: int) -> None:
        """Listen; return when both ports answer.

        Raises:
            OSError: If a port is taken.
        """
        started: Future[None] = Future()

        async def listen() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            async with self._listening(hub_port, cdn_port):
                started.set_result(None)
                await stop.wait()

        def run() -> None:
            try:
                asyncio.run(listen())
            except Exception as error:
                if started.done():
                    raise
                started.set_exception(error)

        self._thread = Thread(target=run, name="hub", daemon=True)
        self._thread.start()
        started.result()

    def stop(self) -> None:
        """Close both ports and wait for the thread to end."""
        if self._stop and self._thread:
            self._stop()
            self._thread.join()
            self._stop = self._thread = None

    @contextlib.asynccontextmanager
    async def _listening(self, hub_port: int, cdn_port: int) -> AsyncIterator[None]:
        # A callback may itself wait for requests, so that there have to be threads left for them.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "hub"))
        runners = []
        try:
            wanted: dict[Origin, int] = {"hub": hub_port, "cdn": cdn_port}
            for origin, port in wanted.items():
                server = web.Server(partial(self._serve, origin), auto_decompress=False)
                runner = web.ServerRunner(server, shutdown_timeout=0.1)
                runners.append(runner)
                await runner.setup()
                await web.TCPSite(runner, self.host, port, reuse_address=True).start()
                self.ports[origin] = runner.addresses[0][1]
            yield
        finally:
            for runner in runners:
                await runner.cleanup()
            # A connection closes in the loop's next turns; one that came in just now is among them.
            await asyncio.sleep(0.01)

    async def _serve(self, origin: Origin, incoming: web.BaseRequest) -> web.StreamResponse:
        url = incoming.rel_url
        record = Record(
            incoming.method,
            url.raw_path,
            url.raw_query_string,
            origin,
            dict(incoming.headers),
            incoming.headers.get("Authorization"),
        )
        self.log.append(record)
        for callback in self._plan.callbacks(record.method, record.path):
            await asyncio.to_thread(callback)
        fault = self._plan.fault(record.method, record.path)
        record.fault = fault.kind if fault else None
        if fault and fault.kind == "drop":
            await _read_some(incoming, fault.after_bytes, record)
            return _abort(incoming)
        if fault and fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        try:
            body = await self._read(incoming, record)
        except ConnectionError:
            return _abort(incoming)  # the client gave up first
        try:
            if fault and fault.kind == "status":
                answer = Answer(fault.status, dict(fault.headers))
            else:
                request = self._request(incoming, record, body)
                answer = await asyncio.to_thread(self._handle, origin, request)
        finally:
            if isinstance(body, Path):
                body.unlink(missing_ok=True)
        if fault and fault.kind == "lost_response":
            return _abort(incoming)
        return await _send(incoming, answer, record=record, fault=fault)

    def _request(self, incoming: web.BaseRequest, record: Record, body: bytes | Path) -> Request:
        host = incoming.host.rpartition(":")[0] or incoming.host
        return Request(
            method=record.method,
            path=record.path,
            query=record.query,
            headers=incoming.headers,
            body=body,
            base=f"http://{incoming.host}",
            cdn=f"http://{host}:{self.ports['cdn']}",
        )

    async def _read(self, incoming: web.BaseRequest, record: Record) -> bytes | Path:
        """Return the body: in memory if it is small, else in a temporary file."""
        content = bytearray()
        file: BinaryIO | None = None
        path = self._temporary()
        try:
            async for piece in incoming.content.iter_any():
                record.bytes_in += len(piece)
                content += piece
                if len(content) >= _CHUNK:
                    file = file or path.open("wb")
                    await asyncio.to_thread(file.write, bytes(content))
                    content.clear()
            if file is None:
                return bytes(content)
            file.write(content)
            return path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            if file is not None:
                file.close()


async def _read_some(incoming: web.BaseRequest, wanted: int, record: Record) -> None:
    while record.bytes_in < wanted and (piece := await incoming.content.readany()):
        record.bytes_in += len(piece)


def _abort(incoming: web.BaseRequest) -> web.StreamResponse:
    """Cut the connection without a word."""
    if incoming.transport is not None:
        incoming.transport.abort()
    return web.Response(status=499)


async def _send(
    incoming: web.BaseRequest, answer: Answer, *, record: Record, fault: Fault | None
) -> web.StreamResponse:
    try:
        start, end = _wanted(incoming, answer)
    except Refusal as refusal:
        answer = refusal.answer
        start, end = 0, answer.size
    record.status = answer.status
    answer.headers["Content-Length"] = str(end - start)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    try:
        await response.prepare(incoming)
        if incoming.method == "HEAD":
            return response
        with _reader(answer.body) as read:
            while start < end:
                piece = await asyncio.to_thread(read, start, min(_CHUNK, end - start))
                start += len(piece)
                kept, whole = _spoiled(piece, record.bytes_out, fault)
                await response.write(kept)
                record.bytes_out += len(kept)
                if not whole:
                    await asyncio.sleep(0.05)  # let what was written arrive
                    return _abort(incoming)
        await response.write_eof()
    except ConnectionError:
        pass  # the client went away
    return response


def _wanted(incoming: web.BaseRequest, answer: Answer) -> tuple[int, int]:
    """Return which bytes of the body to send, and turn the answer into a partial one if asked."""
    size = answer.size
    part = byte_range(incoming.headers.get("Range"), size) if answer.ranged else None
    if part is None:
        return 0, size
    answer.status = 206
    answer.headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
    return part


@contextlib.contextmanager
def _reader(body: bytes | Path) -> Iterator[Callable[[int, int], bytes]]:
    """Give a function that returns a number of bytes from a place."""
    if isinstance(body, bytes):
        yield lambda start, count: body[start : start + count]
        return
    with body.open("rb") as file:

        def read(start: int, count: int) -> bytes:
            file.seek(start)
            return file.read(count)

        yield read


def _spoiled(piece: bytes, sent: int, fault: Fault | None) -> tuple[bytes, bool]:
    """Return what to send of a piece, and whether to go on after it."""
    place = fault.after_bytes - sent if fault else -1
    if not fault or not 0 <= place < len(piece):
        return piece, True
    if fault.kind == "truncate":
        return piece[:place], False
    if fault.kind == "corrupt":
        return piece[:place] + bytes([piece[place] ^ 0xFF]) + piece[place + 1 :], True
    return piece, True
