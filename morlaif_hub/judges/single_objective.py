"""The baseline with a single objective: each pair is judged on one principle, drawn for it.

Instead of a preference model for each principle there is one for all: its labels come from a judge
that is asked about another principle of a constitution from pair to pair. Which one follows from
the pair's id and a seed, so that a run that was stopped goes on with the same draws.

Source:
    Y. Bai et al., Constitutional AI, arXiv:2212.08073, section 4.1; as the baseline of MORLAIF,
    arXiv:2406.07295.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import BaseIdentity
from morlaif_hub.judges.base import (
    JUDGES,
    Answer,
    Answered,
    Judge,
    Progress,
    Question,
    RemoteJudge,
    StreamingJudge,
)
from morlaif_hub.messages import content_hash
from morlaif_hub.principles import CONSTITUTIONS, Principle, load_constitution

KIND = "single-objective"
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
UMBRELLA = "constitutional"
"""The principle that the drawn ones stand in for, of the built-in set of the same name."""
DRAWN_FROM = "single-objective"
"""The constitution that is drawn from, unless another is named."""


@dataclass(frozen=True)
class SingleObjectiveJudge:
    """Asks a judge about the principle that is drawn for each pair.

    Attributes:
        judge: Who is asked.
        constitution: What is drawn from: a built-in set, a plugin's, or a TOML file.
        draw: Seed of the draws; another one draws others.

    Raises:
        UnknownNameError, DataError: If there is no such constitution, or it cannot be read.
        OptionError: If `draw` is no whole number.
    """

    judge: Judge
    constitution: str = DRAWN_FROM
    draw: int = 0

    def __post_init__(self) -> None:
        if type(self.draw) is not int:
            raise OptionError(f"draw must be a whole number, got {self.draw!r}")
        _ = self.principles  # refuse a set that cannot be read before anything is asked

    @property
    def spec(self) -> str:
        """The judge's own, wrapped."""
        return self._wrapped(self.judge.spec)

    @property
    def cache_spec(self) -> str:
        """As `spec`, but the same for judges that share their verdicts."""
        return self._wrapped(str(getattr(self.judge, "cache_spec", self.judge.spec)))

    @property
    def orders(self) -> bool:
        """As the judge's own."""
        return self.judge.orders

    @property
    def base(self) -> BaseIdentity | None:
        """As the judge's own."""
        return self.judge.base

    @property
    def prompt_sha256(self) -> str:
        """Hash of the judge's prompts and of the principles that are drawn."""
        package = JUDGES.package(self.judge.spec.partition(":")[0])  # a plugin's has its version
        parts = [self.judge.prompt_sha256, package, *(p.sha256() for p in self.principles)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def principles(self) -> tuple[Principle, ...]:
        """What is drawn from."""
        return load_constitution(self.constitution).principles

    def drawn(self, comparison: Comparison) -> Principle:
        """Return the principle of a pair, which is the same for the swapped one."""
        return _drawn(self.principles, self.draw, comparison)

    def verdicts(
        self, questions: Sequence[Question], *, progress: Progress | None = None
    ) -> Sequence[Answer]:
        """Return the judge's answer to each question, on the principle that is drawn for its pair.

        Raises:
            OptionError: If a question is about another principle than the umbrella, since its set
                would be labelled by what it is not about.
            JudgeError: As the judge.
        """
        return self.judge.verdicts(list(map(self._question, questions)), progress=progress)

    def _question(self, question: Question) -> Question:
        comparison, principle = question
        if principle.name != UMBRELLA:
            raise OptionError(
                f"judge {self.spec!r} draws a principle for each pair, so it cannot judge "
                f"{principle.name!r}; it is for {UMBRELLA!r} (--constitution {UMBRELLA})"
            )
        return Question(comparison, self.drawn(comparison))

    def _wrapped(self, spec: str) -> str:
        options = []
        if self.constitution != DRAWN_FROM:
            options.append(f"constitution={self.constitution}")
        if self.draw:
            options.append(f"draw={self.draw}")
        joint = "&" if "?" in spec else "?"
        return f"{KIND}:{spec}" + (f"{joint}{'&'.join(options)}" if options else "")


@dataclass(frozen=True)
class _Remote(SingleObjectiveJudge):
    """One that wraps a judge which may be paid for."""

    judge: RemoteJudge

    @property
    def cost_usd(self) -> float:
        """As the judge's own."""
        return self.judge.cost_usd

    @property
    def questions_at_once(self) -> int:
        """As the judge's own."""
        return self.judge.questions_at_once


@dataclass(frozen=True)
class _Streaming(_Remote):
    """One that wraps a judge which takes new questions while others are open."""

    judge: StreamingJudge

    def stream(self, questions: Iterable[Question]) -> Iterator[list[Answered]]:
        """Yield answers as the judge's own `stream` does."""
        return self.judge.stream(map(self._question, questions))


def single_objective_judge(
    judge: Judge, *, constitution: str = DRAWN_FROM, draw: int = 0
) -> SingleObjectiveJudge:
    """Return the baseline's judge, which can do what the judge that it asks can.

    Raises:
        UnknownNameError, DataError, OptionError: As for `SingleObjectiveJudge`.
    """
    if isinstance(judge, StreamingJudge):
        return _Streaming(judge, constitution, draw)
    if isinstance(judge, RemoteJudge):
        return _Remote(judge, constitution, draw)
    return SingleObjectiveJudge(judge, constitution, draw)


def drawn_principle(spec: str, comparison: Comparison) -> Principle | None:
    """Return what the baseline's judge of a spec draws for a pair, by the constitution as it is.

    Returns:
        None for the spec of another judge, and for a constitution that is not registered by name:
        the spec may be a stranger's, and no file that it names is read.
    """
    kind, _, asked = spec.partition(":")
    options = dict(part.partition("=")[::2] for part in asked.partition("?")[2].split("&"))
    constitution, draw = options.get("constitution", DRAWN_FROM), options.get("draw", "0")
    if kind != KIND or constitution not in CONSTITUTIONS.names() or not _WHOLE.fullmatch(draw):
        return None
    return _drawn(load_constitution(constitution).principles, int(draw), comparison)


def _drawn(principles: Sequence[Principle], draw: int, comparison: Comparison) -> Principle:
    return principles[int(content_hash([draw, comparison.id]), 16) % len(principles)]
