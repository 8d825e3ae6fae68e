"""What tokens cost, and how many a text has at most."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from morlaif_hub.errors import DataError, OptionError

_DATED = re.compile(r"-\d{4}(-\d{2}-\d{2})?$")
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Usage:
    """Tokens of requests, as the server counted them."""

    input: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input, self.cached + other.cached, self.output + other.output
        )

    @classmethod
    def of_completion(cls, completion: object) -> "Usage | None":
        """Return what a completion says was used; None where it does not say."""
        usage = completion.get("usage") if isinstance(completion, Mapping) else None
        if not isinstance(usage, Mapping):
            return None
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
        stated = [usage.get("prompt_tokens"), cached or 0, usage.get("completion_tokens") or 0]
        counts = [count for count in stated if type(count) is int and count >= 0]
        if len(counts) < len(stated):
            return None
        return cls(counts[0], min(counts[1], counts[0]), counts[2])


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens.

    Attributes:
        input: Of tokens that the server reads.
        cached: Of those that it had read before.
        output: Of tokens that it writes.

    Raises:
        OptionError: If one is negative or no number.
    """

    input: float
    cached: float
    output: float

    def __post_init__(self) -> None:
        for name in ("input", "cached", "output"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise OptionError(
                    f"a price must be US dollars for a million tokens, 0 or more; {name} is "
                    f"{value!r}"
                )

    def of(self, usage: Usage) -> float:
        """Return what tokens cost, in US dollars."""
        fresh = usage.input - usage.cached
        total = fresh * self.input + usage.cached * self.cached + usage.output * self.output
        return total / 1e6


def price_of(model: str, given: str | float | None = None) -> Price | None:
    """Return what a model costs; None where that is not known.

    Args:
        model: The server's name for it.
        given: `IN,OUT` or `IN,CACHED,OUT` in US dollars for a million tokens, or a TOML file with
            `[prices]` as in the package's own; the built-in prices are used for what is not in it.

    Raises:
        OptionError: If it is neither.
        DataError: If the file cannot be read.
    """
    built_in = tomllib.loads(
        (files("morlaif_hub") / "judges" / "prices.toml").read_text(encoding="utf-8")
    )
    if given is None:
        return _found(built_in["prices"], model)
    text = str(given)
    if text.endswith(".toml"):
        return _found({**built_in["prices"], **_own(Path(text))}, model)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        return Price(numbers[0], numbers[0], numbers[1])
    if len(numbers) == 3:
        return Price(*numbers)
    raise OptionError(
        f"price must be IN,OUT or IN,CACHED,OUT in US dollars for a million tokens, or a .toml "
        f"file, got {text!r}"
    )


def estimated_tokens(characters: int) -> int:
    """Return about how many tokens a text has: four characters each, as English has."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def most_tokens(body: Mapping[str, Any]) -> int:
    """Return more input tokens than a request is likely to have: one for each two bytes."""
    contents = (str(message["content"]).encode() for message in body["messages"])
    return sum(len(content) // 2 + 16 for content in contents)


def _found(prices: Mapping[str, Any], model: str) -> Price | None:
    row = prices.get(model, prices.get(_DATED.sub("", model)))
    if row is None:
        return None
    if not isinstance(row, Mapping) or not {"input", "output"} <= set(row) <= {
        "input",
        "cached",
        "output",
    }:
        raise OptionError(f"the price of {model!r} must have input, output and maybe cached")
    return Price(row["input"], row.get("cached", row["input"]), row["output"])


def _own(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the prices cannot be read: {error}") from error
    prices = table.get("prices")
    if not isinstance(prices, dict):
        raise DataError(f"{path}: there is no table [prices]")
    return prices
