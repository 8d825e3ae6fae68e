"""Two policies compared: which answers a judge prefers, and what else is different about them.

A policy that is trained on preference models scores well on them by design, so what they say is
shown beside what a judge says, how long the answers are, whether they end, and how far each policy
moved from its base.

Source:
    arXiv:2406.07295 (MORLAIF, section 4) for the comparison; arXiv:2306.05685 for asking in both
    orders and taking disagreement for a tie.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison, Message
from morlaif_hub.errors import OptionError
from morlaif_hub.evaluation.answers import (
    Answers,
    Contestant,
    answer,
    pairs_of_answers,
)
from morlaif_hub.figures import Bars, grouped_bars, png
from morlaif_hub.judges.base import Judge, Question, Unanswered, Verdict, ask
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.principles import Principle
from morlaif_hub.progress import Silent, StageProgress
from morlaif_hub.rewards import Scorer
from morlaif_hub.statistics import Interval, bootstrap_interval

Array = NDArray[np.float64]

EXAMPLES = 5
WIN, TIE, LOSS = 1.0, 0.5, 0.0
EMPTY = "both answers are empty"


@dataclass(frozen=True)
class Contest:
    """What two policies are compared by.

    Attributes:
        prompts: That neither learnt from, at least one.
        principles: On which the judge is asked.
        judge: Asked in both orders, if it has one.
        bank: Scores the answers; None for none.
        sampling: How both answer; one answer is compared with the one of the same number.
    """

    prompts: Sequence[Sequence[Message]]
    principles: Sequence[Principle]
    judge: Judge
    bank: Scorer | None = None
    sampling: SamplingSettings = field(
        default_factory=lambda: SamplingSettings(responses=1, distinct=False)
    )

    def __post_init__(self) -> None:
        if not self.prompts:
            raise OptionError("prompts must be at least one, got none")
        if not self.principles and self.bank is None:
            raise OptionError("principles or a bank must be given, or there is nothing to compare")


class Share(NamedTuple):
    """A share, mean or difference with its 95 % interval, which resamples prompts."""

    value: float
    interval: Interval


class Outcome(NamedTuple):
    """How often the first policy's answer won, on one principle or on all.

    Attributes:
        win: Share of the pairs whose first answer is preferred.
        tie: Share of those where the two orders disagree, or neither answer is preferred.
        loss: Share of those whose second answer is preferred.
        score: Wins and half of the ties.
        n: Pairs that count.
        flipped: Share of them in which the two orders disagree.
    """

    win: Share
    tie: Share
    loss: Share
    score: Share
    n: int
    flipped: float


class Contrast(NamedTuple):
    """A mean of either policy, and the first minus the second."""

    a: float
    b: float
    difference: Share


@dataclass(frozen=True)
class Comparisons:
    """What came of it.

    Attributes:
        principles: The judge's outcome on each; without those of which it answered nothing.
        overall: Over the questions on all principles; None where nothing was answered.
        objectives: The bank's calibrated scores, by objective.
        words: Lengths of the answers.
        finished: Whether they ended by themselves.
        kl: Of either policy to its base, in nats per token; None for a model that is no policy.
        unanswered: How many questions got no answer, by the reason.
        examples: A few prompts with both answers.
    """

    principles: dict[str, Outcome]
    overall: Outcome | None
    objectives: dict[str, Contrast]
    words: Contrast
    finished: Contrast
    kl: tuple[float | None, float | None]
    unanswered: dict[str, int]
    examples: list[dict[str, str]]

    def plain(self) -> dict[str, Any]:
        """Return plain values, as `--json` prints them."""
        return {
            "principles": {name: _plain(found) for name, found in self.principles.items()},
            "overall": self.overall and _plain(self.overall),
            "objectives": {name: _plain(found) for name, found in self.objectives.items()},
            "words": _plain(self.words),
            "finished": _plain(self.finished),
            "kl": dict(zip("ab", self.kl, strict=True)),
            "unanswered": self.unanswered,
            "examples": self.examples,
        }


def compare(
    a: Contestant,
    b: Contestant,
    contest: Contest,
    *,
    folder: Path,
    progress: StageProgress | None = None,
) -> Comparisons:
    """Let two policies answer the same prompts, and compare the answers.

    Args:
        a: The policy whose wins are counted.
        b: The other.
        contest: Prompts, principles, judge and bank.
        folder: Where answers are kept, so that none is sampled twice.
        progress: Told how far the work is.

    Raises:
        MorlaifHubError: If a policy cannot be loaded, or the judge gives no usable answer.
    """
    progress = progress or Silent()
    sides = []
    for one in (a, b):
        progress.start(f"answers of {one.name}", len(contest.prompts) * contest.sampling.responses)
        sides.append(
            answer(
                one,
                contest.prompts,
                sampling=contest.sampling,
                folder=folder,
                progress=progress.advance,
            )
        )
    first, second = sides
    owners = np.repeat(np.arange(len(contest.prompts)), contest.sampling.responses)
    judged, unanswered = _judge(first, second, contest, progress)
    contrast = partial(_contrast, owners=owners)
    return Comparisons(
        principles={n: _outcome(s, owners) for n, s in judged.items() if s.answered.any()},
        overall=_overall(list(judged.values()), owners),
        objectives=_scores(first, second, contest, contrast, progress),
        words=contrast(first.words, second.words),
        finished=contrast(first.finished, second.finished),
        kl=(first.kl, second.kl),
        unanswered=unanswered,
        examples=_examples(first, second, contest.prompts),
    )


def draw_outcomes(found: Comparisons, names: tuple[str, str]) -> bytes | None:
    """Return a PNG of wins, ties and losses by principle; None if nothing was judged."""
    if not found.principles:
        return None
    labels = [*found.principles, "all"] if found.overall else [*found.principles]
    outcomes = [*found.principles.values(), *([found.overall] if found.overall else [])]
    series = {
        label: Bars([part(o).value for o in outcomes], [part(o).interval for o in outcomes])
        for label, part in {
            f"{names[0]} wins": _part("win"),
            "tie": _part("tie"),
            f"{names[1]} wins": _part("loss"),
        }.items()
    }
    return png(grouped_bars(labels, series, x_label="share of the pairs of answers"))


def _part(name: str) -> Callable[[Outcome], Share]:
    def of(outcome: Outcome) -> Share:
        found: Share = getattr(outcome, name)
        return found

    return of


class _Judged(NamedTuple):
    """One row for each pair of answers: `WIN`, `TIE` or `LOSS`, NaN where nothing was said."""

    values: Array
    flipped: Array

    @property
    def answered(self) -> NDArray[np.bool_]:
        return ~np.isnan(self.values)


def _judge(
    first: Answers, second: Answers, contest: Contest, progress: StageProgress
) -> tuple[dict[str, _Judged], dict[str, int]]:
    """Return what the judge said by principle, and how often it said nothing, by the reason."""
    pairs = list(pairs_of_answers(first, second))
    known = np.array([_without_judge(left, right) for _, left, right in pairs])
    open_ones = np.flatnonzero(np.isnan(known))
    comparisons = [
        Comparison(tuple(contest.prompts[pairs[k][0]]), pairs[k][1], pairs[k][2]) for k in open_ones
    ]
    judged, reasons = {}, Counter[str]()
    progress.start(f"asking {contest.judge.spec}", len(comparisons) * len(contest.principles))
    for principle in contest.principles:
        questions = [Question(comparison, principle) for comparison in comparisons]
        found = ask(contest.judge, questions, progress=progress.advance) if questions else []
        values, flipped = known.copy(), np.zeros(len(known))
        for k, verdict in zip(open_ones, found, strict=True):
            if isinstance(verdict, Unanswered):
                reasons[verdict.reason] += 1
            else:
                values[k], flipped[k] = _said(verdict), float(verdict.flipped)
        judged[principle.name] = _Judged(values, flipped)
    return judged, dict(reasons)


def _without_judge(first: str, second: str) -> float:
    """Return what needs no judge: equal answers are a tie, an empty one has lost; else NaN."""
    if first == second:
        return TIE
    if not first.strip() or not second.strip():
        return WIN if first.strip() else LOSS if second.strip() else TIE
    return float("nan")


def _said(verdict: Verdict) -> float:
    if verdict.flipped or verdict.tie:
        return TIE
    return WIN if verdict.probability_a > 0.5 else LOSS


def _overall(judged: Sequence[_Judged], owners: NDArray[np.int64]) -> Outcome | None:
    if not any(one.answered.any() for one in judged):
        return None
    together = _Judged(*(np.concatenate(columns) for columns in zip(*judged, strict=True)))
    return _outcome(together, np.tile(owners, len(judged)))


def _outcome(judged: _Judged, owners: NDArray[np.int64]) -> Outcome:
    values, prompts = judged.values[judged.answered], owners[judged.answered]
    shares = {value: _share(values == value, prompts) for value in (WIN, TIE, LOSS)}
    return Outcome(
        win=shares[WIN],
        tie=shares[TIE],
        loss=shares[LOSS],
        score=_share(values, prompts),
        n=len(values),
        flipped=float(judged.flipped[judged.answered].mean()),
    )


def _share(values: NDArray[Any], prompts: NDArray[np.int64]) -> Share:
    numbers = values.astype(float)
    return Share(float(numbers.mean()), bootstrap_interval(numbers, prompts))


def _contrast(a: Array, b: Array, owners: NDArray[np.int64]) -> Contrast:
    return Contrast(float(a.mean()), float(b.mean()), _share(a - b, owners))


def _scores(
    first: Answers,
    second: Answers,
    contest: Contest,
    contrast: Callable[[Array, Array], Contrast],
    progress: StageProgress,
) -> dict[str, Contrast]:
    bank = contest.bank
    if bank is None:
        return {}
    texts = [*first.flat, *second.flat]
    prompts = [
        list(prompt) for prompt in contest.prompts for _ in range(contest.sampling.responses)
    ]
    progress.start("scoring the answers", len(texts))
    scores = bank.score(prompts * 2, texts).double().numpy()
    progress.advance(len(texts))
    half = len(first.flat)
    return {
        name: contrast(scores[:half, column], scores[half:, column])
        for column, name in enumerate(bank.objectives)
    }


def _examples(
    first: Answers, second: Answers, prompts: Sequence[Sequence[Message]]
) -> list[dict[str, str]]:
    shown = zip(prompts[:EXAMPLES], first.texts, second.texts, strict=False)
    return [
        {"prompt": prompt[-1]["content"], "a": left[0], "b": right[0]}
        for prompt, left, right in shown
    ]


def _plain(found: Outcome | Contrast | Share) -> dict[str, Any]:
    values: Mapping[str, Any] = found._asdict()
    return {
        name: _plain(value)
        if isinstance(value, Share)
        else list(value)
        if isinstance(value, Interval)
        else value
        for name, value in values.items()
    }
