"""Labels that weights are fitted on: whose, of which pairs, and what a bank scores there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.bank.members import Member
from morlaif_hub.cli.pairs import read_pairs
from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import DataError, OptionError
from morlaif_hub.feedback.dataset import FeedbackDataset, held_out_prompts
from morlaif_hub.hub.manifest import (
    MANIFEST_NAME,
    SourceRecord,
    manifest_kind,
)
from morlaif_hub.scoring.pairs import score_pairs
from morlaif_hub.scoring.parts import Parts, ScoresOf, scored_by
from morlaif_hub.scoring.processes import Processes
from morlaif_hub.sources import resolve_source
from morlaif_hub.statistics import FloatArray
from morlaif_hub.workspace import Workspace

HELD_OUT = 0.2
"""Share of the prompts that training on people's choices holds out where the source has no split;
`human_preferences` has it as its default."""


@dataclass(frozen=True)
class Labels:
    """Labelled pairs.

    Attributes:
        kind: People's choices, or a judge's verdicts.
        comparisons: The pairs, each once.
        probabilities: Probability that A is better, shape (pairs,).
        sources: Where they were read from.
        everything: All pairs of the source, labelled or not, where there is one file of them.
        left_out: How many labelled pairs are not among them, since the bank learnt from them.
    """

    kind: Literal["human", "feedback"]
    comparisons: list[Comparison]
    probabilities: FloatArray
    sources: tuple[SourceRecord, ...]
    everything: list[Comparison] | None = None
    left_out: int = 0

    @property
    def prompts(self) -> list[str]:
        """The id of each pair's prompt."""
        return [comparison.prompt_id for comparison in self.comparisons]

    def first(self, limit: int | None) -> "Labels":
        """Return the first so many."""
        return self._where(range(len(self.comparisons))[:limit])

    def without(self, prompts: frozenset[str]) -> "Labels":
        """Return those of other prompts."""
        kept = [i for i, prompt in enumerate(self.prompts) if prompt not in prompts]
        return replace(self._where(kept), left_out=len(self.comparisons) - len(kept))

    def _where(self, kept: Sequence[int]) -> "Labels":
        chosen = [self.comparisons[i] for i in kept]
        return replace(self, comparisons=chosen, probabilities=self.probabilities[list(kept)])


class Scores(NamedTuple):
    """Calibrated scores of the responses A and B of pairs, each of shape (pairs, objectives)."""

    a: FloatArray
    b: FloatArray


def read_labels(
    source: str | None, workspace: Workspace, members: Sequence[Member], *, verdicts: bool
) -> Labels:
    """Return labelled pairs of prompts from which none of a bank's preference models learnt.

    On what it learnt from, a preference model is surer and more often right than anywhere else,
    so weights fitted there would be too large for it. What the workspace's feedback, and the
    source itself, tell of that is heeded; other data sets on the Hub are not looked into.

    Args:
        source: Pairs, or a feedback data set; None for people's choices in all feedback of the
            workspace.
        workspace: Has the feedback that its preference models learnt from.
        members: Of the bank.
        verdicts: Take the judge's verdicts of a feedback data set, and not people's choices.

    Raises:
        DataError: If there are no such labels, the bank learnt from all of them, or a judge saw
            each pair in one order only.
    """
    found, feedback = (
        _workspace_labels(workspace) if source is None else _labels_of(source, workspace, verdicts)
    )
    learnt = {*_in_feedback(members, feedback), *_among_choices(members, found, feedback)}
    kept = found.without(frozenset(learnt))
    if not kept.comparisons:
        raise DataError(
            f"the preference models learnt from all {len(found.comparisons)} labelled pairs; give "
            "pairs of other prompts with --labels"
        )
    return kept


def device_alone() -> str:
    """Return where this process computes, which has to be the only one of its run.

    Raises:
        OptionError: If several were launched.
    """
    processes = Processes()
    if processes.count > 1:
        raise OptionError(
            f"weights are fitted by one process, and {processes.count} were launched; let them "
            "score the pairs first, with score --pairs, and then fit the weights alone"
        )
    return processes.device


def score_labels(
    bank: PMBank, labels: Labels, workspace: Workspace, *, progress: Callable[[int], None]
) -> Scores:
    """Return a bank's scores of labelled pairs, which are kept in the workspace.

    Where `score --pairs` has kept scores of the same source there, those are used; what is missing
    is scored, and nothing else.

    Raises:
        MorlaifHubError: As `score_pairs`.
    """
    members = scored_by(bank)
    found = _Rows(labels.comparisons, bank.objectives)
    if labels.everything is not None:
        whole = ScoresOf(labels.sources[0], members)
        for table in Parts(workspace.scores / whole.name, whole).kept():
            found.take(table)
    missing = found.missing()
    progress(len(labels.comparisons) - len(missing))
    if missing:
        ids = "\n".join(comparison.id for comparison in missing)
        these = SourceRecord(name="labels", revision=None, sha256=sha256(ids.encode()).hexdigest())
        of = ScoresOf(these, members)
        folder = workspace.scores / of.name
        for table in score_pairs(bank, missing, folder, of=of, progress=progress).tables():
            found.take(table)
    return Scores(*found.scores)


class _Rows:
    """Scores of pairs, as they are found in tables.

    Attributes:
        scores: Of the responses A and B, shape (2, pairs, objectives); NaN where there is none yet.
    """

    def __init__(self, comparisons: Sequence[Comparison], objectives: Sequence[str]) -> None:
        self._comparisons, self._objectives = comparisons, objectives
        self._places = {comparison.id: i for i, comparison in enumerate(comparisons)}
        self.scores = np.full((2, len(comparisons), len(objectives)), np.nan)

    def take(self, table: pyarrow.Table) -> None:
        """Take what a part has of these pairs."""
        places = np.array([self._places.get(one, -1) for one in table["id"].to_pylist()], int)
        ours = places >= 0
        for column, name in enumerate(self._objectives):
            for side, letter in enumerate("ab"):
                values = table[f"{name}_{letter}"].to_numpy()
                self.scores[side, places[ours], column] = values[ours]

    def missing(self) -> list[Comparison]:
        """Return the pairs that have no scores yet."""
        there = ~np.isnan(self.scores).any(axis=(0, 2))
        return [c for c, known in zip(self._comparisons, there, strict=True) if not known]


class _Found(NamedTuple):
    """All labels of a source, and the feedback data sets that were read."""

    labels: Labels
    feedback: list[FeedbackDataset]


def _workspace_labels(workspace: Workspace) -> _Found:
    feedback = [FeedbackDataset.load(folder) for folder in _feedback_folders(workspace)]
    pairs = {pair.id: pair for dataset in feedback for pair in _pairs_of(dataset)}
    if not any(pair.human_choice for pair in pairs.values()):
        raise DataError(
            f"no --labels were given and the workspace {workspace.root} has no feedback with "
            "people's choices; give --labels: pairs with chosen and rejected responses or a "
            "human_choice, or a feedback data set together with --verdicts"
        )
    sources = tuple(dict.fromkeys(dataset.manifest.source for dataset in feedback))
    return _Found(_choices(list(pairs.values()), sources), feedback)


def _labels_of(source: str, workspace: Workspace, verdicts: bool) -> _Found:
    place = resolve_source(source)
    if manifest_kind(place.path) == "feedback-dataset":
        pinned = f"{place.name}@{place.revision}" if place.revision else place.path
        dataset = FeedbackDataset.load(pinned)
        sha = dataset.reference.sha256
        record = SourceRecord(name=place.name, revision=place.revision, sha256=sha)
        labels = _verdicts(dataset, record) if verdicts else _choices(_pairs_of(dataset), (record,))
        return _Found(labels, [dataset])
    if verdicts:
        raise DataError(
            f"{source} is no feedback data set ({MANIFEST_NAME} of that kind), so it has no "
            "judge's verdicts; leave out --verdicts to use people's choices"
        )
    pairs = read_pairs(source, workspace)
    labels = _choices(pairs.comparisons, (pairs.source,))
    folders = _feedback_folders(workspace)
    return _Found(
        replace(labels, everything=pairs.comparisons), [FeedbackDataset.load(f) for f in folders]
    )


def _choices(pairs: Sequence[Comparison], sources: tuple[SourceRecord, ...]) -> Labels:
    chosen = [pair for pair in pairs if pair.human_choice is not None]
    if not chosen:
        raise DataError(
            f"{sources[0].name}: no pair has a human choice; give pairs with chosen and rejected "
            "responses or a human_choice, or a feedback data set together with --verdicts"
        )
    return Labels(
        kind="human",
        comparisons=chosen,
        probabilities=np.array([float(pair.human_choice == "a") for pair in chosen]),
        sources=sources,
    )


def _verdicts(dataset: FeedbackDataset, record: SourceRecord) -> Labels:
    if dataset.manifest.orders != 2:
        raise DataError(
            f"{record.name}: the judge saw each pair in one order only, so its position bias is "
            "part of the verdicts; collect them in both orders"
        )
    rows = [*dataset.splits.train, *dataset.splits.test]
    return Labels(
        kind="feedback",
        comparisons=[row.comparison for row in rows],
        probabilities=np.array([row.verdict.probability_a for row in rows]),
        sources=(record,),
    )


def _pairs_of(dataset: FeedbackDataset) -> list[Comparison]:
    return [row.comparison for rows in dataset.splits for row in rows]


def _feedback_folders(workspace: Workspace) -> list[Path]:
    found = workspace.all_feedback.glob(f"*/{MANIFEST_NAME}")
    return sorted(path.parent for path in found if not path.parent.name.startswith("."))


def _in_feedback(members: Sequence[Member], feedback: Sequence[FeedbackDataset]) -> Iterator[str]:
    """Yield the prompts of feedback that a member was trained on."""
    learnt = {member.manifest.dataset.sha256 for member in members if member.manifest}
    for dataset in feedback:
        if dataset.reference.sha256 in learnt:
            yield from (row.comparison.prompt_id for row in dataset.splits.train)


def _among_choices(
    members: Sequence[Member], labels: Labels, feedback: Sequence[FeedbackDataset]
) -> Iterator[str]:
    """Yield the prompts of people's choices that a member was trained on.

    Of the very pairs that it learnt from, those that it held out are known. Feedback may be on a
    part of them, and how that part lies in the split of the whole is not: it yields all of it.
    """
    for manifest in (member.manifest for member in members if member.manifest):
        learnt = manifest.dataset.sha256
        if manifest.training.labels != "human":
            continue
        if labels.everything is not None and labels.sources[0].sha256 == learnt:
            seed = manifest.training.seed
            yield from set(labels.prompts) - held_out_prompts(
                labels.comparisons, test_fraction=HELD_OUT, seed=seed
            )
            continue
        for dataset in feedback:
            if dataset.manifest.source.sha256 == learnt:
                yield from (pair.prompt_id for pair in _pairs_of(dataset))
