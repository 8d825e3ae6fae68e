"""Options of commands for a judge behind a server: where it is, how fast it is asked, its price."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from morlaif_hub.cli.command import COUNT, Report
from morlaif_hub.cli.progress import Progress

if TYPE_CHECKING:
    from morlaif_hub.judges.base import Judge, Question

NAMES = ("base_url", "concurrency", "rpm", "tpm", "price", "max_cost")
SECONDS_BETWEEN_LINES = 10.0
_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


def judge_options(function: Callable[..., Report]) -> Callable[..., Report]:
    """Add the options of a judge behind a server to a command that asks one."""
    for option in reversed(
        [
            click.option(
                "--base-url",
                metavar="URL",
                help="Of the server, for openai:. [default: OPENAI_BASE_URL, or OpenAI's]",
            ),
            click.option(
                "--concurrency", type=COUNT, metavar="N", help="Requests at once. [default: 32]"
            ),
            click.option(
                "--rpm",
                type=_ABOVE_ZERO,
                metavar="N",
                help="Requests for each minute. [default: what the server says]",
            ),
            click.option(
                "--tpm",
                type=_ABOVE_ZERO,
                metavar="N",
                help="Tokens for each minute. [default: what the server says]",
            ),
            click.option(
                "--price",
                metavar="IN,OUT",
                help="US dollars for a million tokens, or a TOML file of prices.",
            ),
            click.option(
                "--max-cost",
                type=_ABOVE_ZERO,
                metavar="USD",
                help="Stop before this is spent; what was answered is kept.",
            ),
        ]
    ):
        function = option(function)
    return function


def judge_of(spec: str, options: dict[str, Any]) -> "Judge":
    """Return the judge of a spec, taking what `judge_options` added out of a command's options.

    Raises:
        OptionError: If one was given that the judge does not take.
    """
    from morlaif_hub.judges.base import load_judge

    taken = {name: options.pop(name) for name in NAMES}
    return load_judge(spec, **{name: value for name, value in taken.items() if value is not None})


def find_out(judge: "Judge") -> None:
    """Let a judge behind a server find out how it is asked, before anything else is done.

    Raises:
        JudgeError: If it cannot be asked.
    """
    asking = getattr(getattr(judge, "judge", judge), "asking", None)
    if asking is not None:
        asking()


class Estimate:
    """Adds up what questions to a judge behind a server would take."""

    def __init__(self, judge: "Judge") -> None:
        self._judge: Any = getattr(judge, "judge", judge)
        self._wrapper: Any = judge if self._judge is not judge else None
        self.calls = self.input_tokens = self.output_tokens = 0

    @property
    def known(self) -> bool:
        """Whether the judge is one that can be estimated."""
        return hasattr(self._judge, "planned")

    def add(self, question: "Question") -> None:
        """Count a question in both orders."""
        from morlaif_hub.judges.base import Question
        from morlaif_hub.judges.openai_requests import request_body
        from morlaif_hub.judges.prices import estimated_tokens

        if self._wrapper is not None:
            drawn = self._wrapper.drawn(question.comparison)
            question = Question(question.comparison, drawn)
        asking = self._judge.planned()
        body = request_body(asking, question, a_first=True)
        characters = sum(len(message["content"]) for message in body["messages"])
        requests = 1 if asking.dialect.several else asking.choices
        self.calls += 2 * requests
        self.input_tokens += 2 * requests * estimated_tokens(characters)
        self.output_tokens += 2 * asking.choices * asking.answer_tokens

    def data(self) -> dict[str, Any]:
        """Return the numbers for a report; `cost_usd` is None where no price is known."""
        from morlaif_hub.judges.prices import Usage

        price = self._judge.meter.price
        usage = Usage(self.input_tokens, 0, self.output_tokens)
        return {
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": price.of(usage) if price else None,
            "answers": self._judge.planned().method,
        }

    def text(self) -> str:
        """Return the numbers in words."""
        found = self.data()
        cost = found["cost_usd"]
        priced = "no price is known (--price IN,OUT)" if cost is None else f"{cost:,.2f} US dollars"
        return (
            f"{self.calls:,} requests by {found['answers']}, about {self.input_tokens:,} tokens to "
            f"read (four characters each) and at most {self.output_tokens:,} to write: {priced}."
        )


class JudgeProgress(Progress):
    """Progress that also tells verdicts a second, what was spent, and the time that is left.

    On a terminal that is part of the bar; elsewhere a line is printed now and then.

    Args:
        judge: Whose cost is told, where it is behind a server.
    """

    def __init__(self, judge: "Judge") -> None:
        super().__init__()
        self._judge = judge
        self._total: int | None = None
        self._began = self._told = 0.0

    def start(self, stage: str, total: int | None) -> None:
        """Begin a stage, as `Progress` does."""
        super().start(stage, total)
        self._total = total
        self._began = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """Count units that were just done, and tell how it goes."""
        super().advance(count)
        cost = getattr(self._judge, "cost_usd", None)
        now = time.monotonic()
        if cost is None:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"{cost:,.2f} USD", refresh=False)
        elif now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            click.echo(self._line(cost, now - self._began), err=True)

    def _line(self, cost: float, seconds: float) -> str:
        rate = self._done / seconds
        line = f"{self._done:,} done, {rate:,.1f} a second, {cost:,.2f} US dollars"
        if self._total:
            left = (self._total - self._done) / rate
            line += f", about {left:,.0f} seconds left"
        return line
