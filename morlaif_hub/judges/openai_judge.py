"""The judge behind an OpenAI-compatible server: `openai:MODEL`."""

import asyncio
import os
import threading
from collections.abc import Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import openai

from morlaif_hub.errors import JudgeError, OptionError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import Answer, Answered, Progress, Question
from morlaif_hub.judges.examples import Manner
from morlaif_hub.judges.limits import Pace
from morlaif_hub.judges.openai_client import Exchange, Meter, StoppedError
from morlaif_hub.judges.openai_probe import find_method, keep_asking, kept_asking
from morlaif_hub.judges.openai_requests import METHODS, PLAINLY, Asking, Method
from morlaif_hub.judges.openai_server import (
    OPENAI_URL,
    PATIENTLY,
    Server,
    checked_url,
    new_client,
)
from morlaif_hub.judges.prices import price_of

Answers = Literal["auto", "logprobs", "structured", "samples"]
T = TypeVar("T")


@dataclass
class OpenAIJudge:
    """Asks a model of an OpenAI-compatible server for a letter, in both orders.

    The key is read from OPENAI_API_KEY when the first request is made, and kept nowhere.

    Attributes:
        model: The server's name for it.
        base_url: Of the server; by default OPENAI_BASE_URL, or else OpenAI's.
        answers: How verdicts are got; `auto` finds out once for each model.
        samples: Answers to each order, where that is by `samples`.
        manner: The words of the question.
        server: How fast to ask.

    Raises:
        OptionError: If a value is not accepted, or there is a limit of cost and no known price.
    """

    model: str
    base_url: str = ""
    answers: Answers = "auto"
    samples: int = 8
    manner: Manner = PLAINLY
    server: Server = PATIENTLY
    _meter: Meter = field(init=False, repr=False)
    _pace: Pace = field(init=False, repr=False)
    _asking: Asking | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.model or any(c in self.model for c in "?&"):
            raise OptionError(
                f"name the model as the server does, as in openai:gpt-4o-mini; got {self.model!r}"
            )
        accepted = get_args(Answers)
        if self.answers not in accepted:
            raise OptionError(f"answers must be {', '.join(accepted)}, got {self.answers!r}")
        given = self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.base_url = checked_url(given)
        if type(self.samples) is not int or not 1 <= self.samples <= 128:
            raise OptionError(f"samples must be a whole number from 1 to 128, got {self.samples!r}")
        if self.manner.reasoning and self.answers not in ("auto", "samples"):
            raise OptionError(
                f"answers={self.answers} reads the first words of an answer, so it does not go "
                "with reasoning; leave one of them out"
            )
        price = price_of(self.model, self.server.price)
        if price is None and self.server.max_cost is not None:
            raise OptionError(
                f"the price of {self.model!r} is not known, so no cost can be limited; give it "
                "with --price IN,OUT in US dollars for a million tokens"
            )
        self._meter = Meter(price, self.server.max_cost)
        self._pace = Pace(rpm=self.server.rpm, tpm=self.server.tpm)
        self._asking = kept_asking(self._key, self._unprobed())

    @property
    def spec(self) -> str:
        """The spec, with how verdicts are got as soon as that is known."""
        return self._spec(self._asking.method if self._asking else self.answers)

    @property
    def cache_spec(self) -> str:
        """What tells its verdicts from other judges': all that changes them, as it was asked for.

        The batch judge of the same model has the same.
        """
        return self._spec(self.answers)

    @property
    def orders(self) -> bool:
        """True: responses are shown as A and B."""
        return True

    @property
    def base(self) -> BaseIdentity | None:
        """None: the weights are the server's."""
        return None

    @property
    def prompt_sha256(self) -> str:
        """Hash of the words around a question."""
        return self.manner.prompt_sha256

    @property
    def cost_usd(self) -> float:
        """What it has cost so far, in US dollars; 0 where no price is known."""
        return self._meter.cost_usd

    @property
    def meter(self) -> Meter:
        """Calls, tokens and cost so far."""
        return self._meter

    @property
    def questions_at_once(self) -> int:
        """Half the concurrency, since a question takes a request in each order."""
        return max(1, self.server.concurrency // 2)

    def asking(self) -> Asking:
        """Return how the model is asked, which is found out by a short question the first time.

        Raises:
            JudgeError: If the server cannot be reached, refuses, or gives no readable verdict.
            OptionError: If OpenAI's own server is to be asked without a key.
        """
        if self._asking is None:
            self._asking = _in_a_loop(self._find_out())
            keep_asking(self._key, self._asking)
        return self._asking

    def planned(self) -> Asking:
        """Return how the model will be asked as far as is known, having sent nothing."""
        return self._asking or self._unprobed()

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> list[Answer]:
        """Return one answer for each question, in order.

        Raises:
            JudgeError: As for `stream`.
        """
        answers: dict[int, Answer] = {}
        for answered in self.stream(questions):
            answers.update(answered)
            if progress:
                progress(len(answered))
        return [answers[number] for number in range(len(questions))]

    def stream(self, questions: Iterable[Question]) -> Generator[list[Answered]]:
        """Yield answers as they come, as `StreamingJudge` says.

        Raises:
            JudgeError: If nothing more can be asked: the server refuses everything, too many
                requests failed in a row, or the limit of cost is reached.
        """
        source = enumerate(questions)
        first = next(source, None)
        if first is None:
            return
        asking = self.asking()
        with _Running(self, asking) as running:
            running.submit(*first)
            opened, more = 1, True
            while True:
                while more and opened < self.questions_at_once and not running.stopped:
                    drawn = next(source, None)
                    if drawn is None:
                        more = False
                    else:
                        running.submit(*drawn)
                        opened += 1
                if not opened:
                    break
                came = running.answers()
                opened -= len(came)
                answered = [answer for answer in came if answer is not None]
                if answered:
                    yield answered
            if running.stopped:
                raise running.stopped

    def client(self) -> openai.AsyncOpenAI:
        """Return a client for the server, as `new_client` does."""
        return new_client(self.base_url, timeout=self.server.timeout)

    def exchange(self, client: openai.AsyncOpenAI) -> Exchange:
        """Return what asks by a client, within this judge's limits; made in its event loop."""
        return Exchange(client, self._pace, self._meter, self.server.concurrency)

    @property
    def _key(self) -> str:
        return f"{self.base_url} {self.model} {self.answers} reasoning={self.manner.reasoning}"

    def _spec(self, answers: Answers) -> str:
        samples = self.samples if answers in ("samples", "auto") and self.samples != 8 else None
        options = {
            "base_url": None if self.base_url == OPENAI_URL else self.base_url,
            "answers": None if answers == "auto" else answers,
            "samples": samples,
            "examples": self.manner.examples or None,
            "reasoning": self.manner.reasoning or None,
        }
        query = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return f"openai:{self.model}" + (f"?{query}" if query else "")

    def _unprobed(self) -> Asking:
        return Asking(self.model, self._methods[0], self.samples, self.manner)

    @property
    def _methods(self) -> tuple[Method, ...]:
        if self.manner.reasoning:
            return ("samples",)
        return METHODS if self.answers == "auto" else (self.answers,)

    async def _find_out(self) -> Asking:
        async with self.client() as client:
            exchange = self.exchange(client)
            try:
                return await find_method(exchange, self._unprobed(), self._methods)
            except StoppedError:
                raise exchange.stopped or JudgeError("the judge was stopped") from None


class _Running:
    """Questions that are asked in an event loop of its own thread."""

    def __init__(self, judge: OpenAIJudge, asking: Asking) -> None:
        self._judge, self._asking = judge, asking
        self._came: SimpleQueue[Answered | None] = SimpleQueue()
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="openai-judge", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._exchange: Exchange
        self._over: asyncio.Event

    def __enter__(self) -> "_Running":
        self._thread.start()
        self._ready.wait()
        if self._failed:
            raise self._failed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    @property
    def stopped(self) -> BaseException | None:
        """Why nothing more is asked; None as long as it is."""
        return self._exchange.stopped

    def submit(self, number: int, question: Question) -> None:
        """Ask a question; its answer will be among `answers`."""
        self._loop.call_soon_threadsafe(self._start, number, question)

    def answers(self) -> list[Answered | None]:
        """Wait for an answer, and return all that are there; None is a question not asked."""
        came = [self._came.get()]
        while True:
            try:
                came.append(self._came.get_nowait())
            except Empty:
                return came

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        try:
            client = self._judge.client()
        except BaseException as error:
            self._failed = error
            self._ready.set()
            return
        async with client:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            self._exchange = self._judge.exchange(client)
            self._ready.set()
            await self._over.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, number: int, question: Question) -> None:
        task = self._loop.create_task(self._answer(number, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, question: Question) -> None:
        answered = None
        try:
            answered = Answered(number, await self._exchange.answer(self._asking, question))
        except StoppedError:
            pass
        except Exception as error:  # a fault of ours: the caller must see it, not wait for ever
            self._exchange.stopped = self._exchange.stopped or error
        self._came.put(answered)


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run work in an event loop of its own, also where one runs already, as in a notebook."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
