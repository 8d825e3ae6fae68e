"""Asking an OpenAI-compatible server: its limits, its failures and what it costs."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx2
import openai

from morlaif_hub.errors import JudgeError
from morlaif_hub.judges.base import Answer, Question, Unanswered
from morlaif_hub.judges.limits import Pace, backoff, retry_after
from morlaif_hub.judges.openai_requests import (
    REFUSED,
    Asking,
    MalformedError,
    Reading,
    read_answer,
    request_body,
    share_of,
    verdict_of,
)
from morlaif_hub.judges.prices import Price, Usage, most_tokens

ATTEMPTS = 7
LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more is not waited for."""
_RETRIED = {408, 409, 425, 429}
_FOR_ALL = {401, 404}
_GO_ON = "All verdicts so far are kept; the same command goes on from there"


class StoppedError(Exception):
    """Nothing more is asked; what was the reason is with the exchange."""


class RejectedError(Exception):
    """The server does not take a request as it is, and never will; its words are the text."""


@dataclass
class Meter:
    """What was asked for and paid.

    Attributes:
        price: None where it is not known; then nothing is added up in dollars.
        max_cost: In US dollars; None for no limit.
        calls: Requests that were sent, failed ones too.
        usage: Tokens that the server counted.
    """

    price: Price | None = None
    max_cost: float | None = None
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    _reserved: float = 0.0

    @property
    def cost_usd(self) -> float:
        """What the answers cost so far, in US dollars."""
        return self.price.of(self.usage) if self.price else 0.0

    def reserve(self, body: Mapping[str, Any]) -> float | None:
        """Set aside the most that a request may cost; None where that could pass the limit."""
        if self.price is None:
            return 0.0
        output = body.get("max_tokens", body.get("max_completion_tokens", 0)) * body.get("n", 1)
        most = self.price.of(Usage(most_tokens(body), 0, output))
        if self.max_cost is not None and self.cost_usd + self._reserved + most > self.max_cost:
            return None
        self._reserved += most
        return most

    def settle(self, reserved: float, usage: Usage | None) -> None:
        """Put down what a request used, in place of what was set aside for it."""
        self._reserved -= reserved
        if usage:
            self.usage += usage


@dataclass
class Exchange:
    """Requests to one server, in one event loop.

    Attributes:
        client: Does not retry by itself.
        pace: The limits.
        meter: What is spent.
        concurrency: Requests in flight at once.
        stopped: Why nothing more is asked; None as long as it is.
    """

    client: openai.AsyncOpenAI
    pace: Pace
    meter: Meter
    concurrency: int
    stopped: BaseException | None = None
    _answered: bool = False
    _failed_in_a_row: int = 0
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    async def answer(self, asking: Asking, question: Question) -> Answer:
        """Return the answer to a question, having asked in both orders.

        Raises:
            StoppedError: If nothing more is asked.
        """
        shares = await asyncio.gather(
            *(self._share(asking, question, a_first=a_first) for a_first in (True, False)),
            return_exceptions=True,
        )
        for share in shares:
            if isinstance(share, BaseException):
                raise share
            if isinstance(share, Unanswered):
                return share
        a_first, b_first = (share for share in shares if isinstance(share, float))
        return verdict_of(a_first, b_first)

    async def _share(
        self, asking: Asking, question: Question, *, a_first: bool
    ) -> float | Unanswered:
        readings: list[Reading] = []
        missing = asking.choices
        while missing > 0:  # a server may give fewer choices than it was asked for
            body = request_body(asking, question, a_first=a_first, n=missing)
            try:
                reading = await self.read(asking, body)
            except RejectedError as error:
                return Unanswered(str(error))
            if isinstance(reading, Unanswered):
                return reading
            readings.append(reading)
            missing -= reading.choices
        return share_of(readings)

    async def read(
        self, asking: Asking, body: dict[str, Any], *, retry_malformed: bool = True
    ) -> Reading | Unanswered:
        """Return what the server answers to one request, which is sent again if that may help.

        Args:
            asking: How it is asked.
            body: Of the request.
            retry_malformed: Whether to ask again where the answer lacks what was asked for.

        Raises:
            RejectedError: If the server refuses this request.
            StoppedError: If nothing more is asked.
        """
        reason = ""
        for attempt in range(ATTEMPTS):
            async with self._slots:
                try:
                    return await self._once(asking, body)
                except _RetriedError as error:
                    reason, told = str(error), error.told_to_wait
                    if isinstance(error.__cause__, MalformedError) and not retry_malformed:
                        break
            if not told and attempt + 1 < ATTEMPTS:
                await asyncio.sleep(backoff(attempt))
        return Unanswered(reason)

    async def _once(self, asking: Asking, body: dict[str, Any]) -> Reading | Unanswered:
        reserved = self._reserve(body)
        used: Usage | None = None
        tokens = most_tokens(body) / 2
        try:
            await self.pace.wait(tokens)
            self._check_going()
            completion = await self._post(body)
            used = Usage.of_completion(completion)
            if used:
                self.pace.used(used.input + used.output, of=tokens)
            reading = read_answer(asking, completion)
        except MalformedError as error:
            self._failed(str(error))
            raise _RetriedError(str(error)) from error
        finally:
            self.meter.settle(reserved, used)
        self._answered, self._failed_in_a_row = True, 0
        return reading

    async def _post(self, body: dict[str, Any]) -> object:
        self.meter.calls += 1
        try:
            response = await self.client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response
            )
        except openai.APIStatusError as error:
            self.pace.heed(error.response.headers)
            self._refused(error)
        except openai.APITimeoutError as error:
            self._failed("no answer in time")
            raise _RetriedError("no answer in time") from error
        except openai.APIConnectionError as error:
            if not self._answered and isinstance(error.__cause__, httpx2.ConnectError):
                self.stop(
                    f"{self.client.base_url} cannot be reached: {error.__cause__}. Check "
                    "--base-url (OPENAI_BASE_URL), and that the server runs"
                )
            self._failed("the connection broke")
            raise _RetriedError("the connection broke") from error
        self.pace.heed(response.headers)
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise MalformedError("the server's answer is no JSON") from error

    def _refused(self, error: openai.APIStatusError) -> NoReturn:
        """Turn an HTTP error into what follows from it."""
        status, words = error.status_code, self._words(error)
        known = error.code if isinstance(error.code, str) else ""
        if status in _FOR_ALL or (status == 403 and not self._answered):
            self.stop(
                f"the server refuses everything (HTTP {status}): {words}. Check the model's name, "
                "--base-url (OPENAI_BASE_URL) and OPENAI_API_KEY"
            )
        if known == "insufficient_quota":
            self.stop(f"the account has no quota left (HTTP {status}): {words}. {_GO_ON}")
        if status in _RETRIED or status >= 500:
            told = self._wait_as_told(error, status)
            raise _RetriedError(f"HTTP {status}", told_to_wait=told) from error
        if known in ("content_filter", "content_policy_violation"):
            raise RejectedError(REFUSED) from error
        if self._answered:
            self._failed(f"HTTP {status}: {words}")
            raise RejectedError(f"HTTP {status}: {known or 'the request was refused'}") from error
        raise RejectedError(f"HTTP {status}: {words}") from error

    def _wait_as_told(self, error: openai.APIStatusError, status: int) -> bool:
        """Pause for as long as the server says; False where it does not say."""
        wait = retry_after(error.response.headers)
        if status != 429:
            self._failed(f"HTTP {status}")
        if wait is None:
            return False
        if wait > LONGEST_WAIT:
            self.stop(f"the server asks to wait for {wait:,.0f} seconds. {_GO_ON}")
        self.pace.pause(wait)
        return True

    def _words(self, error: openai.APIStatusError) -> str:
        body = error.body
        message = body.get("message") if isinstance(body, Mapping) else None
        text = str(message or error.message)
        return text.replace(self.client.api_key, "[key]")[:300].rstrip(". ")

    def _reserve(self, body: dict[str, Any]) -> float:
        self._check_going()
        reserved = self.meter.reserve(body)
        if reserved is None:
            self.stop(
                f"stopped at {self.meter.cost_usd:.4f} US dollars, before --max-cost "
                f"{self.meter.max_cost:g} is passed. {_GO_ON}, with a higher --max-cost"
            )
        return reserved

    def _failed(self, reason: str) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(2 * ATTEMPTS, ATTEMPTS * self.concurrency):
            self.stop(f"{self._failed_in_a_row} requests failed in a row, last: {reason}. {_GO_ON}")

    def _check_going(self) -> None:
        if self.stopped:
            raise StoppedError

    def stop(self, reason: str) -> NoReturn:
        """Ask nothing more, for a reason that the user is told.

        Raises:
            StoppedError: Always.
        """
        self.stopped = self.stopped or JudgeError(reason)
        raise StoppedError


class _RetriedError(Exception):
    """A request failed in a way that may not last."""

    def __init__(self, reason: str, *, told_to_wait: bool = False) -> None:
        super().__init__(reason)
        self.told_to_wait = told_to_wait
