"""Collecting feedback: validate the judge, ask it, write one dataset for each principle."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub import __version__
from morlaif_hub.comparisons import Comparison
from morlaif_hub.distinct import Distinct
from morlaif_hub.errors import DataError, OptionError, WrongWayError
from morlaif_hub.feedback.answers import Answers, collected_answers
from morlaif_hub.feedback.bias import bias_of
from morlaif_hub.feedback.cache import CachedJudge, VerdictCache
from morlaif_hub.feedback.dataset import held_out_rows, write_feedback
from morlaif_hub.feedback.spool import Spool, spooled
from morlaif_hub.hub.manifest import (
    ChoiceRecord,
    FeedbackManifest,
    JudgeRecord,
    SourceRecord,
    ValidationRecord,
)
from morlaif_hub.judges.base import Judge, Question, RemoteJudge
from morlaif_hub.judges.validation import sample_choices, validate_judge, validate_on_choices
from morlaif_hub.principles import Principle
from morlaif_hub.progress import StageProgress


@dataclass(frozen=True)
class CollectSettings:
    """How feedback is collected.

    Attributes:
        test_fraction: Share of the prompts held out for testing, unless the source has a split.
        seed: Of that split and of the intervals in the bias report.
        limit: Use the first so many comparisons only.
        unvalidated: Skip the judge's validation; the datasets then say so.
        license: Of the datasets; it has to allow for that of the source.
    """

    test_fraction: float = 0.2
    seed: int = 0
    limit: int | None = None
    unvalidated: bool = False
    license: str = "apache-2.0"

    def __post_init__(self) -> None:
        if not 0.0 < self.test_fraction < 1.0:
            raise OptionError(
                f"test_fraction must be between 0 and 1, both excluded, got {self.test_fraction}"
            )
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit must be at least 1, got {self.limit}")
        if not self.license.strip():
            raise OptionError("license must not be empty; name the licence of the datasets")


class CollectionPlan(NamedTuple):
    """How much work collecting would be: all questions, and those with an answer in the cache."""

    questions: int
    cached: int


DEFAULT_SETTINGS = CollectSettings()


def plan_feedback(
    principles: Sequence[Principle],
    comparisons: Iterable[Comparison],
    judge: Judge,
    *,
    settings: CollectSettings = DEFAULT_SETTINGS,
    each: Callable[[Question], None] | None = None,
) -> CollectionPlan:
    """Return how many questions collecting would ask, without asking any; probes not counted.

    Args:
        principles: As for `collect_feedback`.
        comparisons: As for `collect_feedback`; gone through once, none is kept.
        judge: Not asked.
        settings: How to collect.
        each: Called with every question that would be asked.
    """
    _check_names(principles)
    pairs = 0

    def distinct() -> Iterator[Comparison]:
        nonlocal pairs
        with Distinct() as seen:
            new = (comparison for comparison in comparisons if seen.add(comparison.id))
            for comparison in islice(new, settings.limit):
                pairs += 1
                yield comparison

    to_ask = 0
    with VerdictCache() as cache:
        for question in CachedJudge(judge, cache).missing(_questions(principles, distinct())):
            to_ask += 1
            if each:
                each(question)
    _check_any(pairs)
    return CollectionPlan(pairs * len(principles), pairs * len(principles) - to_ask)


def collect_feedback(
    principles: Sequence[Principle],
    comparisons: Iterable[Comparison],
    judge: Judge,
    *,
    folder: Path,
    source: SourceRecord,
    settings: CollectSettings = DEFAULT_SETTINGS,
    progress: StageProgress | None = None,
) -> dict[str, FeedbackManifest]:
    """Label comparisons on principles and write one dataset each.

    The judge is validated first: one that is the wrong way round on a principle stops everything
    before anything is labelled, one that is unproven goes on and the datasets say so. Answers are
    kept as they come, so that a run that was stopped goes on where it was. The pair of a question
    without a verdict is left out and counted by the reason; the next run asks it again.

    Args:
        principles: With different names.
        comparisons: At least one. A pair that is there twice is labelled once. They wait in a
            temporary file, so that memory holds a few numbers for each.
        judge: Asked about every comparison on every principle.
        folder: A dataset is written to `folder/<principle>`, in place of one that is there.
        source: Where the comparisons came from.
        settings: How to collect.
        progress: Told of each stage.

    Returns:
        The manifests, by the principles' names.

    Raises:
        WrongWayError: If the judge prefers the worse side of a principle's probes.
        JudgeError: If it gives no usable answer, or none at all on a principle; nothing is written.
        DataError: If there is nothing to label.
        WorkspaceError: If cache or folder cannot be written.
    """
    _check_names(principles)
    with VerdictCache() as cache, spooled(comparisons, limit=settings.limit) as spool:
        _check_any(len(spool))
        before = _totals(judge)
        cached = CachedJudge(judge, cache)
        records = _judge_records(cached, principles, spool, settings=settings, progress=progress)
        answers = _answered(cached, principles, spool, progress)
        spent = _shared_out(judge, before, cached.asked)
        held_out = held_out_rows(spool, test_fraction=settings.test_fraction, seed=settings.seed)
        manifests = {}
        for principle, of_it in zip(principles, answers, strict=True):
            manifest = _manifest(
                principle,
                _Data(spool, of_it, held_out),
                judge=records[principle.name],
                source=source,
                settings=settings,
                spent=spent[principle.name],
            )
            manifests[principle.name] = write_feedback(
                folder / principle.name, of_it.rows(spool, held_out), manifest=manifest
            )
    return manifests


class _Spent(NamedTuple):
    calls: int
    cost_usd: float
    tokens: int | None


class _Data(NamedTuple):
    spool: Spool
    answers: Answers
    held_out: NDArray[np.bool_]


def _check_names(principles: Sequence[Principle]) -> None:
    names = [principle.name for principle in principles]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"principles must be one or more with different names, got {names}")


def _check_any(comparisons: int) -> None:
    if not comparisons:
        raise DataError("there are no comparisons to label; give at least one")


def _questions(
    principles: Sequence[Principle], comparisons: Iterable[Comparison]
) -> Iterator[Question]:
    # All principles of a comparison in a row: judges read what they share once.
    return (
        Question(comparison, principle) for comparison in comparisons for principle in principles
    )


def _totals(judge: Judge) -> _Spent:
    """Return what a judge says it has used; one that counts no calls has none."""
    cost = judge.cost_usd if isinstance(judge, RemoteJudge) else 0.0
    meter = getattr(getattr(judge, "judge", judge), "meter", None)
    if meter is None:
        return _Spent(0, cost, None)
    return _Spent(meter.calls, cost, meter.usage.input + meter.usage.output)


def _shared_out(judge: Judge, before: _Spent, asked: Counter[str]) -> defaultdict[str, _Spent]:
    """Return what was used since `before`, by principle: as much for each question."""
    now = _totals(judge)
    spent: defaultdict[str, _Spent] = defaultdict(
        lambda: _Spent(0, 0.0, None if now.tokens is None else 0)
    )
    for name, questions in asked.items():
        share = questions / max(asked.total(), 1)
        calls, tokens = questions * (2 if judge.orders else 1), None
        if now.tokens is not None and before.tokens is not None:
            calls = round((now.calls - before.calls) * share)
            tokens = round((now.tokens - before.tokens) * share)
        spent[name] = _Spent(calls, (now.cost_usd - before.cost_usd) * share, tokens)
    return spent


def _answered(
    judge: CachedJudge,
    principles: Sequence[Principle],
    spool: Spool,
    progress: StageProgress | None,
) -> list[Answers]:
    """Ask everything that was not asked before, and return all answers by principle."""
    if progress:
        progress.start("judging", len(spool) * len(principles))
    advance = progress.advance if progress else None
    judge.fill(_questions(principles, spool), progress=advance)
    return collected_answers(judge, principles, spool)


def _judge_records(
    judge: CachedJudge,
    principles: Sequence[Principle],
    spool: Spool,
    *,
    settings: CollectSettings,
    progress: StageProgress | None,
) -> dict[str, JudgeRecord]:
    """Return who labels, after the tests that come before labelling, by the principles' names."""
    validation: dict[str, ValidationRecord] = {}
    choices: dict[str, ChoiceRecord] = {}
    if not settings.unvalidated:
        validation = _validated(judge, principles, progress)
        if spool.human_sides.any():
            chosen = sample_choices(spool, seed=settings.seed)
            if progress:
                progress.start("asking about choices of people", len(chosen) * len(principles))
            advance = progress.advance if progress else None
            choices = validate_on_choices(judge, principles, chosen, progress=advance)
    return {
        principle.name: JudgeRecord(
            spec=judge.spec,
            base=judge.base,
            prompt_sha256=judge.prompt_sha256,
            validated=principle.name in validation,
            validation=validation.get(principle.name),
            choices=choices.get(principle.name),
        )
        for principle in principles
    }


def _validated(
    judge: Judge, principles: Sequence[Principle], progress: StageProgress | None
) -> dict[str, ValidationRecord]:
    if progress:
        progress.start("validating the judge", sum(len(p.probes) for p in principles))
    advance = progress.advance if progress else None
    records = validate_judge(judge, principles, progress=advance)
    wrong = [
        f"{name} (accuracy {record.accuracy:.3f} on {record.n} probes, 95 % interval "
        f"{record.interval[0]:.3f} to {record.interval[1]:.3f})"
        for name, record in records.items()
        if record.verdict == "wrong way"
    ]
    if wrong:
        raise WrongWayError(
            f"judge {judge.spec!r} prefers the worse side on {', '.join(wrong)}. Its labels would "
            "teach the opposite, so nothing was labelled. Leave the principle out, use another "
            "judge, or skip this check with --unvalidated (unvalidated=True)"
        )
    return records


def _manifest(
    principle: Principle,
    data: _Data,
    *,
    judge: JudgeRecord,
    source: SourceRecord,
    settings: CollectSettings,
    spent: _Spent,
) -> FeedbackManifest:
    spool, answers, held_out = data
    sides = (answers.given & ~held_out, answers.given & held_out)
    train_prompts, test_prompts = (len(np.unique(spool.prompt_ids[side])) for side in sides)
    train_pairs, test_pairs = (int(side.sum()) for side in sides)
    return FeedbackManifest(
        license=settings.license,
        principle=principle.record(),
        source=source,
        judge=judge,
        orders=2,  # a verdict always holds both
        train_pairs=train_pairs,
        test_pairs=test_pairs,
        train_prompts=train_prompts,
        test_prompts=test_prompts,
        bias=bias_of(answers.judged(spool), seed=settings.seed),
        calls=spent.calls,
        cost_usd=spent.cost_usd,
        judge_tokens=spent.tokens,
        unanswered=answers.unanswered(),
        versions={
            "morlaif-hub": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
    )
