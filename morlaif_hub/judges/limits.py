"""How fast to ask: limits for each minute, what servers say of them, and when to retry."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from morlaif_hub.errors import OptionError

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
_SECONDS_AT_ONCE = 1.0  # of an allowance, that may be used up in one go


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait; None where it does not say.

    Args:
        headers: Of its answer: `retry-after-ms`, or `retry-after` as seconds or as a date.
        now: The time, for a date.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def backoff(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait before a retry: doubled each time, the half of it at random.

    Args:
        attempt: Which retry, from 0.
        draw: Gives a number in [0, 1).
    """
    longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempt, 16))
    return longest * (0.5 + 0.5 * draw())


@dataclass
class Bucket:
    """An allowance that fills up evenly; it may be overdrawn, which has to be waited out.

    Attributes:
        per_minute: How much comes in a minute; None for no limit.
        level: What is there at `filled`.
        filled: When, in seconds of a clock that does not go back.
    """

    per_minute: float | None
    level: float = 1.0
    filled: float = 0.0

    def take(self, amount: float, now: float) -> float:
        """Take an amount, and return the seconds until it is there."""
        if self.per_minute is None:
            return 0.0
        self._fill(now)
        self.level -= amount
        return max(0.0, -self.level * 60.0 / self.per_minute)

    def give_back(self, amount: float) -> None:
        """Put back what was taken and not used; less than zero takes more."""
        if self.per_minute is not None:
            self.level += amount

    def limit(self, per_minute: float, now: float) -> None:
        """Fill up no faster than so much in a minute from now on."""
        if self.per_minute is None:
            self.level, self.filled = 1.0, now
        self._fill(now)
        if self.per_minute is None or per_minute < self.per_minute:
            self.per_minute = per_minute

    def _fill(self, now: float) -> None:
        if self.per_minute is not None:
            rate = self.per_minute / 60.0
            self.level = min(
                self.level + rate * (now - self.filled), max(1.0, rate * _SECONDS_AT_ONCE)
            )
        self.filled = now


class Pace:
    """Lets requests go when all limits allow for them; for one event loop.

    Args:
        rpm: Requests for each minute; None takes what the server's headers say.
        tpm: Tokens for each minute; likewise.

    Raises:
        OptionError: If one of them is not above zero.
    """

    def __init__(self, *, rpm: float | None = None, tpm: float | None = None) -> None:
        for name, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name} must be a number above zero, got {value!r}")
        now = time.monotonic()
        self._requests = Bucket(rpm, filled=now)
        self._tokens = Bucket(tpm, filled=now)
        self._paused_until = now

    async def wait(self, tokens: float) -> None:
        """Wait until a request of about so many tokens may be sent."""
        now = time.monotonic()
        delay = max(self._requests.take(1, now), self._tokens.take(tokens, now))
        if delay > 0:
            await asyncio.sleep(delay)
        while (pause := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(pause + 0.05 * random.random())

    def used(self, tokens: float, *, of: float) -> None:
        """Correct what was taken for a request once the server has counted its tokens."""
        self._tokens.give_back(of - tokens)

    def pause(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def heed(self, headers: Mapping[str, str]) -> None:
        """Take over the limits for each minute that a server states.

        Those are `x-ratelimit-limit-requests` and `x-ratelimit-limit-tokens`.
        """
        now = time.monotonic()
        for bucket, name in ((self._requests, "requests"), (self._tokens, "tokens")):
            stated = headers.get(f"x-ratelimit-limit-{name}")
            if stated is None:
                continue
            try:
                per_minute = float(stated)
            except ValueError:
                continue
            if 0 < per_minute < math.inf and per_minute != bucket.per_minute:
                bucket.limit(per_minute, now)
