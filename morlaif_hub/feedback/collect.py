"""Collecting feedback: validate the judge, ask it, write one dataset for each principle."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from morlaif_hub import __version__
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import DataError, OptionError, WrongWayError
from morlaif_hub.feedback.bias import bias_report
from morlaif_hub.feedback.cache import CachedJudge, VerdictCache
from morlaif_hub.feedback.dataset import Labelled, Splits, held_out_prompts, write_feedback
from morlaif_hub.hub.manifest import (
    FeedbackManifest,
    JudgeRecord,
    SourceRecord,
    ValidationRecord,
)
from morlaif_hub.judges.base import Judge, Question, RemoteJudge
from morlaif_hub.judges.validation import validate_judge
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
) -> CollectionPlan:
    """Return how many questions collecting would ask, without asking any; probes not counted."""
    questions = _questions(principles, _distinct(comparisons, settings.limit))
    with VerdictCache() as cache:
        cached = sum(verdict is not None for verdict in cache.get_many(judge, questions))
    return CollectionPlan(len(questions), cached)


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
    kept as they come, so that a run that was stopped goes on where it was.

    Args:
        principles: With different names.
        comparisons: At least one. A pair that is there twice is labelled once.
        judge: Asked about every comparison on every principle.
        folder: A dataset is written to `folder/<principle>`, in place of one that is there.
        source: Where the comparisons came from.
        settings: How to collect.
        progress: Told of each stage.

    Returns:
        The manifests, by the principles' names.

    Raises:
        WrongWayError: If the judge prefers the worse side of a principle's probes.
        JudgeError: If it gives no usable answer.
        DataError: If there is nothing to label.
        WorkspaceError: If cache or folder cannot be written.
    """
    items = _distinct(comparisons, settings.limit)
    questions = _questions(principles, items)
    cost_before = _cost(judge)
    with VerdictCache() as cache:
        cached = CachedJudge(judge, cache)
        validation = {} if settings.unvalidated else _validated(cached, principles, progress)
        labelled = _labelled(cached, questions, progress)
    cost_per_question = (_cost(judge) - cost_before) / max(cached.asked.total(), 1)
    held_out = held_out_prompts(items, test_fraction=settings.test_fraction, seed=settings.seed)
    manifests = {}
    for principle in principles:
        asked = cached.asked[principle.name]
        splits = _split(labelled[principle.name], held_out)
        manifest = _manifest(
            principle,
            splits,
            judge=_judge_record(judge, validation.get(principle.name)),
            source=source,
            settings=settings,
            spent=_Spent(asked * (2 if judge.orders else 1), asked * cost_per_question),
        )
        manifests[principle.name] = write_feedback(
            folder / principle.name, splits, manifest=manifest
        )
    return manifests


class _Spent(NamedTuple):
    calls: int
    cost_usd: float


def _distinct(comparisons: Iterable[Comparison], limit: int | None) -> list[Comparison]:
    first: dict[str, Comparison] = {}
    for comparison in comparisons:
        if len(first) == limit:
            break
        first.setdefault(comparison.id, comparison)
    if not first:
        raise DataError("there are no comparisons to label; give at least one")
    return list(first.values())


def _questions(
    principles: Sequence[Principle], comparisons: Sequence[Comparison]
) -> list[Question]:
    names = [principle.name for principle in principles]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"principles must be one or more with different names, got {names}")
    # All principles of a comparison in a row: judges read what they share once.
    return [
        Question(comparison, principle) for comparison in comparisons for principle in principles
    ]


def _cost(judge: Judge) -> float:
    return judge.cost_usd if isinstance(judge, RemoteJudge) else 0.0


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


def _labelled(
    judge: Judge, questions: Sequence[Question], progress: StageProgress | None
) -> dict[str, list[Labelled]]:
    """Return the verdicts by the principles' names, each list in the order of the comparisons."""
    if progress:
        progress.start("judging", len(questions))
    verdicts = judge.verdicts(questions, progress=progress.advance if progress else None)
    labelled: dict[str, list[Labelled]] = {}
    for (comparison, principle), verdict in zip(questions, verdicts, strict=True):
        labelled.setdefault(principle.name, []).append(Labelled(comparison, verdict))
    return labelled


def _split(labelled: Sequence[Labelled], held_out: frozenset[str]) -> Splits:
    splits = Splits([], [])
    for item in labelled:
        side = splits.test if item.comparison.prompt_id in held_out else splits.train
        side.append(item)
    return splits


def _judge_record(judge: Judge, validation: ValidationRecord | None) -> JudgeRecord:
    return JudgeRecord(
        spec=judge.spec,
        base=judge.base,
        prompt_sha256=judge.prompt_sha256,
        validated=validation is not None,
        validation=validation,
    )


def _manifest(
    principle: Principle,
    splits: Splits,
    *,
    judge: JudgeRecord,
    source: SourceRecord,
    settings: CollectSettings,
    spent: _Spent,
) -> FeedbackManifest:
    comparisons, verdicts = zip(*(item for items in splits for item in items), strict=True)
    train_prompts, test_prompts = (
        len({item.comparison.prompt_id for item in items}) for items in splits
    )
    return FeedbackManifest(
        license=settings.license,
        principle=principle.record(),
        source=source,
        judge=judge,
        orders=2,  # a verdict always holds both
        train_pairs=len(splits.train),
        test_pairs=len(splits.test),
        train_prompts=train_prompts,
        test_prompts=test_prompts,
        bias=bias_report(comparisons, verdicts, seed=settings.seed),
        calls=spent.calls,
        cost_usd=spent.cost_usd,
        versions={
            "morlaif-hub": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
    )
