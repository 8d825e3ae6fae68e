"""How fast verdicts come from a server: the `openai:` judge, and one request after the other.

A server in a process of its own answers each request 50 ms late, refuses more than its limit of
requests a minute with a 429, and chooses the same response in whichever place it is shown. Each
client is a process of its own too. A verdict takes two requests, one in each order.

    python -m benchmarks.feedback --tiny     # seconds, to see how it works
    python -m benchmarks.feedback            # a minute

One request after the other is `openai.OpenAI` in a plain loop with its own words, on the server
with the same limit, of which it uses a few percent.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click

from benchmarks.children import in_child, peak_megabytes
from benchmarks.feedback_server import BETTER, SHARE, WORSE, counts, serving
from morlaif_hub.cli.command import COUNT, Report, command
from morlaif_hub.cli.progress import Progress
from morlaif_hub.cli.tables import paragraphs, table, wrapped
from morlaif_hub.comparisons import Comparison
from morlaif_hub.judges.base import Question, Verdict
from morlaif_hub.judges.openai_judge import OpenAIJudge
from morlaif_hub.judges.openai_server import Server
from morlaif_hub.principles import Principle, load_constitution
from morlaif_hub.workspace import Workspace

LIMIT_SHARE, TIMES = 0.9, 20.0
Way = Literal["judge", "loop", "unlimited"]
WAYS: dict[Way, str] = {
    "judge": "the judge",
    "loop": "one after the other",
    "unlimited": "the judge, no limit",
}


@dataclass(frozen=True)
class Asked:
    """What one client did.

    Attributes:
        way: A key of `WAYS`.
        limit: Requests a minute that the server answers; 0 for no limit.
        verdicts: That came.
        right: Of them, those with the probability that the server gave.
        seconds: From the first question to the last verdict.
        processor: Seconds of a processor that the client took in this time.
        before: Megabytes that it had had resident at most when it began to ask.
        megabytes: The same at its end.
        requests: That the server answered, the judge's first short question included.
        refused: That the server refused for its limit.
        at_once: The most that were open at one time.
    """

    way: Way
    limit: float
    verdicts: int
    right: int
    seconds: float
    processor: float
    before: float
    megabytes: float
    requests: int
    refused: int
    at_once: int

    @property
    def speed(self) -> float:
        """Requests a second that led to verdicts."""
        return 2 * self.verdicts / self.seconds

    @property
    def share(self) -> float | None:
        """Of the requests that the server allows for; None without a limit."""
        return self.speed * 60.0 / self.limit if self.limit else None

    @property
    def processor_ms(self) -> float:
        """Milliseconds of a processor for each verdict."""
        return self.processor / self.verdicts * 1e3


def ask(*, url: str, verdicts: int, concurrency: int, cache: str) -> dict[str, Any]:
    """Ask by the `openai:` judge and return what it took, as plain values.

    Args:
        url: Of the server.
        verdicts: How many to ask for.
        concurrency: Requests in flight at once.
        cache: A folder for what it finds out.
    """
    os.environ["MORLAIF_CACHE"] = cache
    judge = OpenAIJudge("loopback", base_url=url, server=Server(concurrency=concurrency))
    judge.asking()  # finds out how to ask, once for each model
    principles = load_constitution("morlaif-12").principles
    clock = _Clock()
    answers = [
        answered.answer
        for came in judge.stream(_questions(principles, verdicts))
        for answered in came
    ]
    shares = [answer.probability_a for answer in answers if isinstance(answer, Verdict)]
    return clock.took(shares)


def loop(*, url: str, verdicts: int) -> dict[str, Any]:
    """Ask by a plain client, one request after the other; return what it took, as plain values.

    Args:
        url: Of the server.
        verdicts: How many to ask for.
    """
    import openai

    client = openai.OpenAI(base_url=url, api_key="none")

    def first_share(text: str) -> float:
        completion = client.chat.completions.create(
            model="loopback",
            messages=[{"role": "user", "content": text}],
            max_tokens=1,
            logprobs=True,
            top_logprobs=20,
        )
        logprobs = completion.choices[0].logprobs
        top = logprobs.content[0].top_logprobs if logprobs and logprobs.content else []
        return sum(math.exp(token.logprob) for token in top if token.token.strip() == "A")

    clock = _Clock()
    shares = []
    for number in range(verdicts):
        ask = f"Why {number}?\n\nA: {{}}\n\nB: {{}}\n\nWhich is better, A or B?"
        a_first = first_share(ask.format(BETTER, WORSE))
        shares.append((a_first + 1.0 - first_share(ask.format(WORSE, BETTER))) / 2)
    return clock.took(shares)


def measure(
    *, limit: float, latency: float, sizes: dict[Way, int], concurrency: int, scratch: Path
) -> list[Asked]:
    """Return what each way took, each with a server and a process of its own.

    Args:
        limit: Requests a minute.
        latency: Of an answer, in seconds.
        sizes: Verdicts to ask for, by way.
        concurrency: Of the judge.
        scratch: A folder for answers.
    """
    found = []
    with Progress() as progress:
        progress.start("asking, each way in a process of its own", len(WAYS))
        for way in WAYS:
            rpm = 0.0 if way == "unlimited" else limit
            with serving(latency=latency, rpm=rpm) as url:
                given: dict[str, Any] = {"url": url, "verdicts": sizes[way]}
                if way == "loop":
                    took = in_child("benchmarks.feedback:loop", given, scratch=scratch)
                else:
                    given |= {"concurrency": concurrency, "cache": str(scratch / "cache")}
                    took = in_child("benchmarks.feedback:ask", given, scratch=scratch)
                done = counts(url)
            found.append(
                Asked(
                    way,
                    rpm,
                    **took,
                    requests=done.answered,
                    refused=done.refused,
                    at_once=done.at_once,
                )
            )
            progress.advance(1)
    return found


@dataclass(frozen=True)
class Goals:
    """How the judge does.

    Attributes:
        share: Of the server's limit that it uses.
        times: Its requests a second, as a multiple of one after the other, with the same limit.
        right: Whether every verdict of every way came and was right.
    """

    share: float
    times: float
    right: bool

    @classmethod
    def of(cls, found: list[Asked], sizes: dict[Way, int]) -> "Goals":
        """Compare the ways of one run."""
        ways = {asked.way: asked for asked in found}
        judge = ways["judge"]
        right = all(asked.right == sizes[asked.way] for asked in found)
        return cls(judge.share or 0.0, judge.speed / ways["loop"].speed, right)

    @property
    def held(self) -> bool:
        """Whether both are good enough."""
        return self.right and self.share >= LIMIT_SHARE and self.times >= TIMES


def shown(found: list[Asked], goals: Goals, *, about: str, judged: bool) -> str:
    """Return what was measured as a table.

    Args:
        found: One for each way.
        goals: Of them.
        about: What was asked, in words.
        judged: Whether enough was asked for the goals.
    """
    rows = [
        (
            WAYS[a.way],
            f"{a.speed:.1f}",
            "-" if a.share is None else f"{a.share:.3f}",
            f"{a.right}/{a.verdicts}",
            f"{a.seconds:.2f}",
            f"{a.processor_ms:.2f}",
            f"{a.megabytes:.0f}",
            f"{a.megabytes - a.before:.0f}",
            a.refused,
            a.at_once,
        )
        for a in found
    ]
    header = (
        "asked by",
        "requests/s",
        "of limit",
        "right",
        "seconds",
        "CPU ms",
        "peak MB",
        "grown",
        "429s",
        "at once",
    )
    said = (
        "right: verdicts with the server's probability, of all; CPU ms: of the client, for a "
        "verdict, which is two requests; grown: megabytes since it began to ask; at once: the most "
        "requests that were open."
    )
    compared = (
        f"{goals.share:.3f} of the limit (goal {LIMIT_SHARE}), {goals.times:.1f} times one request "
        f"after the other with the same limit (goal {TIMES:g})"
    )
    outcome = f": {'' if goals.held else 'NOT '}held" if judged else "; too short for the goals"
    measured = table(header, rows) + "\n" + wrapped(said)
    return paragraphs(wrapped(about), measured, wrapped(compared + outcome))


@command("feedback")
@click.option("--tiny", is_flag=True, help="A few verdicts.")
@click.option("--limit", type=COUNT, metavar="N", default=30_000, show_default=True, help="Rpm.")
@click.option(
    "--latency", type=COUNT, metavar="MS", default=50, show_default=True, help="Of an answer."
)
@click.option("--verdicts", type=COUNT, metavar="N", help="By the judge. [default: 12 seconds']")
@click.option("--concurrency", type=COUNT, metavar="N", default=64, show_default=True)
def main(
    workspace: Workspace,
    *,
    tiny: bool,
    limit: int,
    latency: int,
    verdicts: int | None,
    concurrency: int,
) -> Report:
    """Compare the openai judge with one request after the other, against a limit."""
    del workspace  # nothing of it is used
    asked = verdicts or max(1, limit // 120 * (1 if tiny else 12))
    sizes: dict[Way, int] = {"judge": asked, "loop": 5 if tiny else 100, "unlimited": asked}
    with TemporaryDirectory(prefix="morlaif-feedback-") as place:
        found = measure(
            limit=limit,
            latency=latency / 1e3,
            sizes=sizes,
            concurrency=concurrency,
            scratch=Path(place),
        )
    about = (
        f"A server on this machine that answers after {latency} ms, at most {limit:,} requests a "
        f"minute; {concurrency} requests of the judge in flight at most."
    )
    return report(found, Goals.of(found, sizes), about=about, judged=not tiny)


def report(found: list[Asked], goals: Goals, *, about: str, judged: bool) -> Report:
    """Return all ways as a report; it fails if a verdict is wrong or a goal is not reached."""
    ways = [
        {**asdict(a), "speed": a.speed, "share": a.share, "processor_ms": a.processor_ms}
        for a in found
    ]
    data: dict[str, Any] = {
        "about": about,
        "ways": ways,
        "share_of_the_limit": goals.share,
        "times_one_after_the_other": goals.times,
        "right": goals.right,
        "goals": {"share_of_the_limit": LIMIT_SHARE, "times_one_after_the_other": TIMES},
        "held": goals.held if judged else None,
    }
    failed = not goals.right or (judged and not goals.held)
    return Report(data, shown(found, goals, about=about, judged=judged), exit_code=int(failed))


class _Clock:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._before = peak_megabytes()
        self._started = time.perf_counter(), time.process_time()

    def took(self, shares: list[float]) -> dict[str, Any]:
        """Return what was used until now for verdicts of these probabilities, as plain values."""
        ended = time.perf_counter(), time.process_time()
        return {
            "verdicts": len(shares),
            "right": sum(math.isclose(share, SHARE, abs_tol=1e-6) for share in shares),
            "seconds": ended[0] - self._started[0],
            "processor": ended[1] - self._started[1],
            "before": self._before,
            "megabytes": peak_megabytes(),
        }


def _questions(principles: tuple[Principle, ...], count: int) -> Iterator[Question]:
    for number in range(count):
        prompt = ({"role": "user", "content": f"Why {number // len(principles)}?"},)
        pair = Comparison(prompt, BETTER, WORSE)
        yield Question(pair, principles[number % len(principles)])


if __name__ == "__main__":
    main()
