"""The judge behind `transformers serve`: a real server that nobody here wrote, with a real model.

It takes `logprobs`, `n` and `response_format` and ignores them without a word, and its model often
names no letter. A proxy between the two counts what was asked and what came.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest

from morlaif_hub.comparisons import Comparison
from morlaif_hub.judges.base import Question, Unanswered, Verdict, load_judge
from morlaif_hub.judges.openai_judge import OpenAIJudge
from morlaif_hub.judges.openai_requests import NO_LETTER
from morlaif_hub.models.embedded import embedded_model
from morlaif_hub.principles import load_constitution

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("users_cache")]

NEEDED = ("fastapi", "uvicorn", "starlette", "rich")
SAMPLES = 3
STARTS_WITHIN = 60.0
PAIRS = (
    ("What is two plus two?", "Four.", "Five."),
    ("Tell me a joke.", "No.", "Why did the chicken cross the road? To get to the other side!"),
    ("Name a colour.", "Red", "Banana"),
)
# A letter alone, or after what leads up to it; the model's own way is "The answer is A."
LETTER = re.compile(r"(?:\W|the |answer|option|is )*([ab])(?=[.:,!)*]|\s*$)", re.IGNORECASE)

Exchanged = tuple[dict[str, Any], dict[str, Any]]


@dataclass
class Proxy:
    """What went to the real server and came back, in order.

    Attributes:
        url: Where the judge asks.
        log: Each request's body, and the completion.
    """

    url: str
    log: list[Exchanged] = field(default_factory=list)

    def texts(self) -> dict[str, list[str]]:
        """Return what the model said to each question with several samples, in each order."""
        said: dict[str, list[str]] = {}
        for body, completion in self.log:
            if "logprobs" not in body and "response_format" not in body:
                choices = said.setdefault(body["messages"][-1]["content"], [])
                choices += [choice["message"]["content"] for choice in completion["choices"]]
        return said


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            answer = httpx2.post(f"{url}{self.path}", json=json.loads(raw), timeout=120)
            if answer.status_code == 200:
                proxy.log.append((json.loads(raw), answer.json()))
            self.send_response(answer.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Run `transformers serve` with the embedded model; its address and the model's name there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing and "MORLAIF_REQUIRE_BROWSER" in os.environ:
        pytest.fail(f"no {', '.join(missing)} here, where .ci/run says that everything is")
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}")
    model, port = str(embedded_model()), free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command = [Path(sys.executable).parent / "transformers", "serve", model, *options]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"{url}/health", process, Path(log.name))
            yield url, model
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"it does not answer: {log.read_text()[-2000:]}")


def letters(texts: list[str]) -> Counter[str]:
    found = [LETTER.match(text) for text in texts]
    return Counter(match[1].upper() for match in found if match)


def share_of_a(texts: list[str]) -> float | None:
    """Return what counting the letters gives, with one more for each; None without a letter."""
    count = letters(texts)
    return (count["A"] + 1) / (count.total() + 2) if count else None


def test_a_server_that_ignores_what_it_is_asked_for_is_found_out(
    served: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, model = served
    monkeypatch.setenv("MORLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    principle = load_constitution("morlaif-12").principles[0]
    questions = [
        Question(Comparison(({"role": "user", "content": prompt},), a, b), principle)
        for prompt, a, b in PAIRS
    ]
    with proxy_to(url) as proxy:
        judge = load_judge(f"openai:{model}?base_url={proxy.url}&samples={SAMPLES}")
        assert isinstance(judge, OpenAIJudge)
        assert judge.asking().method == "samples"
        probed = proxy.log.copy()
        proxy.log.clear()
        answers = judge.verdicts(questions)
    check_that_the_server_ignores_everything(probed + proxy.log)
    assert load_judge(judge.cache_spec).spec == judge.spec  # found out once, and kept
    assert "answers=samples" in judge.spec

    texts = proxy.texts()
    assert len(texts) == 2 * len(questions)  # each in both orders
    assert [len(said) for said in texts.values()] == [SAMPLES] * len(texts)
    assert len(proxy.log) == 2 * len(questions) * SAMPLES
    assert judge.meter.calls == len(probed) + len(proxy.log)
    paid = [completion["usage"] for _, completion in probed + proxy.log]
    assert judge.meter.usage.input == sum(usage["prompt_tokens"] for usage in paid)
    assert judge.meter.usage.output == sum(usage["completion_tokens"] for usage in paid)

    assert {type(answer) for answer in answers} == {Verdict, Unanswered}
    for question, answer in zip(questions, answers, strict=True):
        pair = question.comparison.response_a, question.comparison.response_b
        a_first = share_of_a(texts_of(texts, *pair))
        b_first = share_of_a(texts_of(texts, *pair[::-1]))
        if a_first is None or b_first is None:
            assert answer == Unanswered(NO_LETTER)
        else:
            assert answer == Verdict(a_first, 1.0 - b_first)


def texts_of(texts: dict[str, list[str]], first: str, second: str) -> list[str]:
    """Return what was said where one response was shown first and the other second."""
    shown = f"Option A: {first}\n\nOption B: {second}\n\n"
    (said,) = [said for asked, said in texts.items() if shown in asked]
    return said


def check_that_the_server_ignores_everything(log: list[Exchanged]) -> None:
    """Otherwise this is no longer a test of what the judge falls back on."""
    asked = [body for body, _ in log]
    for name in ("logprobs", "response_format", "n"):
        assert any(name in body for body in asked), name
    for body, completion in log:
        (choice,) = completion["choices"]
        assert choice.get("logprobs") is None
        assert "response_format" not in body or not choice["message"]["content"].startswith("{")
