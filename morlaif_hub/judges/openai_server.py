"""How an OpenAI-compatible server is reached, and how fast it is asked."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

import openai

from morlaif_hub.errors import OptionError

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Server:
    """How to reach a server, and how fast to ask it; nothing of this changes a verdict.

    Attributes:
        concurrency: Requests in flight at once.
        rpm: Requests for each minute; None takes what the server says.
        tpm: Tokens for each minute; likewise.
        price: As `price_of` takes it; None for the built-in prices.
        max_cost: In US dollars, that must not be passed; None for no limit.
        timeout: Seconds to wait for an answer.

    Raises:
        OptionError: If a number is out of range.
    """

    concurrency: int = 32
    rpm: float | None = None
    tpm: float | None = None
    price: str | float | None = None
    max_cost: float | None = None
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if type(self.concurrency) is not int or not 1 <= self.concurrency <= 1000:
            raise OptionError(
                f"concurrency must be a whole number from 1 to 1000, got {self.concurrency!r}"
            )
        for name in ("rpm", "tpm", "max_cost", "timeout"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise OptionError(f"{name} must be a number above zero, got {value!r}")


PATIENTLY = Server()


def server_of(options: Mapping[str, Any]) -> Server:
    """Return the server settings of options by name.

    Raises:
        OptionError: If there is no such option, or a number is out of range.
    """
    known = [setting.name for setting in fields(Server)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"judge 'openai' takes no option {unknown[0]!r}; it takes: base_url, answers, samples, "
            f"examples, reasoning, {', '.join(known)}"
        )
    return Server(**options)


def new_client(base_url: str, *, timeout: float) -> openai.AsyncOpenAI:
    """Return a client for a server, which does not retry by itself.

    Args:
        base_url: Of the server.
        timeout: Seconds to wait for an answer.

    Raises:
        OptionError: If OpenAI's own server is to be asked without a key.
    """
    key = os.environ.get("OPENAI_API_KEY")
    if not key and base_url == OPENAI_URL:
        raise OptionError(
            "OpenAI's server needs a key: set OPENAI_API_KEY, or name another server with "
            "--base-url URL"
        )
    return openai.AsyncOpenAI(
        api_key=key or "no-key",  # a local server asks for none
        base_url=base_url,
        max_retries=0,
        timeout=timeout,
    )


def checked_url(url: str) -> str:
    """Return the address of a server without a slash at its end.

    Raises:
        OptionError: If it is none, or has parts that may be secret.
    """
    parts = urlsplit(str(url))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(f"base_url must be as in http://localhost:8000/v1, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment or "&" in url:
        raise OptionError(
            "base_url must have no user, password, query or fragment: it is written into "
            "manifests; give a key by OPENAI_API_KEY"
        )
    return str(url).rstrip("/")
