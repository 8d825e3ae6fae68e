"""Runs against a server: killed again and again, or refused some answers.

A run that is killed ends with the data of one that was not, and pays for little twice. The judge is
a plugin that asks over HTTP, as a user's would, so that the server's log says what was asked.
"""

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from morlaif_hub.cli import cli

CONCURRENCY = 8
PAIRS = 150
PRINCIPLES = ("conciseness", "detail")
REQUESTS = PAIRS * len(PRINCIPLES) * 2

PLUGIN = """
import http.client, json
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from morlaif_hub.judges.base import Answered, Unanswered, Verdict


@dataclass
class Remote:
    spec: str
    address: str
    orders: bool = True
    base: None = None
    prompt_sha256: str = "e" * 64
    cost_usd: float = 0.0
    questions_at_once: int = CONCURRENCY // 2

    def verdicts(self, questions, *, progress=None):
        answered = [item for items in self.stream(questions) for item in items]
        return [answer for _, answer in sorted(answered)]

    def stream(self, questions):
        questions, open_questions, number = iter(questions), {}, 0
        with ThreadPoolExecutor(self.questions_at_once) as threads:
            while True:
                for question in islice(questions, self.questions_at_once - len(open_questions)):
                    open_questions[threads.submit(self.answer, question)] = number
                    number += 1
                if not open_questions:
                    return
                done, _ = wait(open_questions, return_when=FIRST_COMPLETED)
                yield [Answered(open_questions.pop(future), future.result()) for future in done]

    def answer(self, question):
        comparison, principle = question
        a, b = comparison.response_a, comparison.response_b
        given = [self.ask(principle.name, *shown) for shown in ((a, b), (b, a))]
        if None in given:
            return Unanswered("HTTP 403: refused")
        return Verdict(given[0], 1 - given[1])

    def ask(self, *parts):
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request("POST", "/", json.dumps(parts))
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None


def make(address):
    return Remote(f"acme/remote:{address}", address)
"""


class LoggingServer(ThreadingHTTPServer):
    """Answers each request with a probability that depends on its content, and logs it.

    Attributes:
        refused: A word; requests that hold it are refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.log: list[bytes] = []
        self.refused: bytes | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_request: object) -> None:
        """Expect that those who ask are killed before they hear the answer."""


class _Handler(BaseHTTPRequestHandler):
    server: LoggingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.log.append(body)
        time.sleep(0.01)
        answer = json.dumps(sha256(body).digest()[0] / 255).encode()
        refused = self.server.refused is not None and self.server.refused in body
        self.send_response(403 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_message: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[LoggingServer]:
    with LoggingServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with pairs, and with the plugin as `pip` would have installed it."""
    (tmp_path / "acme.py").write_text(PLUGIN.replace("CONCURRENCY", str(CONCURRENCY)))
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[morlaif_hub.judges]\nremote = acme:make\n")
    rows = [
        {"prompt": f"Question {i // 2}?", "chosen": f"Answer {i}.", "rejected": f"Reply {i}."}
        for i in range(PAIRS)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


COMMAND = ("-m", "morlaif_hub", "collect-feedback", *PRINCIPLES, "--unvalidated", "--json")

# The same without the command's imports, which take longer than the rest.
LIBRARY = """
    import sys
    from pathlib import Path
    from morlaif_hub.comparisons import read_comparisons
    from morlaif_hub.feedback.collect import CollectSettings, collect_feedback
    from morlaif_hub.hub.manifest import SourceRecord
    from morlaif_hub.judges.base import load_judge
    from morlaif_hub.principles import load_constitution
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    collect_feedback(
        [load_constitution().get(name) for name in {names!r}],
        read_comparisons(options["--pairs"]),
        load_judge(options["--judge"]),
        folder=Path(options["--workspace"]) / "feedback",
        source=SourceRecord(name="pairs.jsonl", revision=None, sha256="c" * 64),
        settings=CollectSettings(unvalidated=True),
    )
"""


def options(place: Path, server: LoggingServer, run: str) -> tuple[str, ...]:
    """Return the options of a run whose workspace has that name."""
    paths = ("--pairs", str(place / "pairs.jsonl"), "--workspace", str(place / run))
    return (*paths, "--judge", f"acme/remote:{server.address}")


def start(
    program: tuple[str, ...], place: Path, server: LoggingServer, run: str
) -> subprocess.Popen:
    """Start a run with a cache and a workspace of its own name."""
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, *program, *options(place, server, run)],
        env={
            **os.environ,
            "PYTHONPATH": f"{place}:{root}",
            "MORLAIF_CACHE": str(place / f"{run}-cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def kill_after(process: "subprocess.Popen[bytes]", requests: int, server: LoggingServer) -> None:
    """Kill a process, with no chance to tidy up, once the server has logged so many requests."""
    deadline = time.monotonic() + 60
    while len(server.log) < requests:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the run asks nothing"
        time.sleep(0.001)
    process.kill()
    process.communicate()


def data(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all parquet files below a folder."""
    found = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("program", "kills"),
    [
        pytest.param(("-c", textwrap.dedent(LIBRARY.format(names=PRINCIPLES))), 1, id="library"),
        pytest.param(COMMAND, 10, id="command", marks=pytest.mark.slow),
    ],
)
def test_kills_cost_what_was_in_flight_and_change_nothing(
    program: tuple[str, ...],
    kills: int,
    place: Path,
    server: LoggingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("MORLAIF_CACHE", str(place / "whole-cache"))
    assert CliRunner().invoke(cli, [*COMMAND[2:], *options(place, server, "whole")]).exit_code == 0
    assert len(set(server.log)) == len(server.log) == REQUESTS

    server.log.clear()
    chance = random.Random(os.getpid())
    for _ in range(kills):
        more = chance.randint(1, REQUESTS // (kills + 2))
        kill_after(start(program, place, server, "killed"), len(server.log) + more, server)
        assert not data(place / "killed"), "nothing is written before all is answered"
    assert len(set(server.log)) < REQUESTS
    finish(start(program, place, server, "killed"))

    assert len(set(server.log)) == REQUESTS
    assert len(server.log) - REQUESTS <= CONCURRENCY * kills
    assert data(place / "killed") == data(place / "whole")
    assert len(data(place / "whole")) == 2 * len(PRINCIPLES)


def test_the_command_tells_what_it_left_out_and_asks_it_again(
    place: Path, server: LoggingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("MORLAIF_CACHE", str(place / "cache"))
    path = place / "few.jsonl"
    rows = (place / "pairs.jsonl").read_text().splitlines()[:30]
    bad = '{"prompt": "q", "chosen": "x"}'
    path.write_text("\n".join([*rows[:20], bad, *rows[20:], rows[3], rows[4]]))
    path.rename(place / "pairs.jsonl")

    def run(*more: str) -> Result:
        command = ["collect-feedback", *PRINCIPLES, *options(place, server, "few")]
        result = CliRunner().invoke(cli, [*command, *more])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    plan = json.loads(run("--dry-run", "--json").stdout)
    left_out = {"duplicates": 2, "bad_rows": 1}
    questions = {"questions": 60, "cached": 0, "to_ask": 60}
    assert plan == {**questions, "calls": 120, **left_out}

    limited = run("--dry-run", "--limit", "25")
    assert limited.stdout.startswith("50 questions: 0 answers are cached, 50 are to be asked, each")
    assert "hint: 1 row is left out, beside 25 that can be read: " in limited.stderr

    server.refused = b"Answer 1"  # and 10 to 19
    first = run("--unvalidated")
    assert first.exit_code == 0
    assert "hint: 1 row is left out, beside 30 that can be read: " in first.stderr
    assert "hint: 2 rows repeat a pair that was there before; each pair counts once" in first.stderr
    said = " ".join(first.stdout.split())
    for name in PRINCIPLES:
        assert f"NO VERDICT on 11 of 30 pairs for {name}, which are left out (HTTP 403: " in said
    assert "The next run asks them again." in said

    server.refused = b"Answer 17."
    server.log.clear()
    second = json.loads(run("--unvalidated", "--json").stdout)
    assert {name: second[name] for name in left_out} == left_out
    for name in PRINCIPLES:
        found = second["principles"][name]
        assert found["unanswered"] == [{"reason": "HTTP 403: refused", "n": 1}]
        assert (found["pairs"], found["calls"]) == (29, 22)
    assert len(server.log) == 11 * 2 * 2

    server.refused = b"Answer"
    (place / "cache" / "verdicts.sqlite").unlink()
    third = run("--unvalidated")
    assert third.exit_code == 1
    assert "answered none of 30 questions on conciseness: HTTP 403: refused (30)" in third.stderr
    assert third.stderr.count("Error") == 1
