"""Where preference models begin: probes, and the score heads that further training starts from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from morlaif_hub.hub.manifest import HeadRecord, ProbeRecord
from morlaif_hub.preference_models.features import Candidate, FrozenStates
from morlaif_hub.preference_models.head import Fitted, fit_head
from morlaif_hub.preference_models.preferences import LabelledPairs
from morlaif_hub.preference_models.tokens import Array
from morlaif_hub.statistics import pairwise_accuracy, sigmoid

MOST_PAIRS = 4096
"""On which what a probe reads is chosen, and the start of further training is fitted. More change
little, and their states would not fit into memory: 12 KB a pair for each candidate of a small
model."""

Progress = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done, and of how much."""


class Counter:
    """Turns how much was just done into how much is done.

    Args:
        tell: Told how much is done, and of how much.
        total: Of how much.
    """

    def __init__(self, tell: Callable[[int, int], None], total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0

    def __call__(self, more: int = 1) -> None:
        """Count what was just done."""
        self._done += more
        self._tell(self._done, self._total)


@dataclass(frozen=True)
class Start:
    """A fitted head.

    Attributes:
        weight: Shape (width,).
        record: What it reads, and how good it was in cross-validation.
        predicted: Probability that A is better, of each pair, by a head that was fitted on other
            prompts, shape (pairs,); None where there is one prompt only.
    """

    weight: Array
    record: HeadRecord
    predicted: Array | None

    @property
    def probe(self) -> ProbeRecord:
        """The head as a probe."""
        return ProbeRecord(layer=self.record.layer, pooling=self.record.pooling)


def fit_probes(
    states: FrozenStates,
    sets: Sequence[tuple[str, LabelledPairs]],
    candidates: Sequence[Candidate],
    *,
    seed: int,
    progress: Progress,
) -> list[Start]:
    """Return the best probe for each set of labelled pairs.

    Of a large set a sample decides what the probe reads; then it is fitted on all of it.

    Args:
        states: Of the base.
        sets: Each principle's name and pairs.
        candidates: What probes may read.
        seed: Of the splits and the sample.
        progress: Told how far each stage is.
    """
    samples = [pairs.sample(MOST_PAIRS, seed) for _, pairs in sets]
    layers = sorted({candidate.layer for candidate in candidates})
    states.add(samples, layers=layers, progress=partial(progress, "read"))
    starts = []
    for (name, _), sample in zip(sets, samples, strict=True):
        tell = Counter(partial(progress, f"fit {name}"), len(candidates))
        fitted = fit_head(
            [partial(states.pooled, sample, candidate) for candidate in candidates],
            sample.probabilities,
            sample.prompts,
            seed=seed,
            progress=tell,
        )
        starts.append(_start(fitted, candidates[fitted.choice], len(sample)))
    for k, (name, pairs) in enumerate(sets):
        if len(pairs) > len(samples[k]):
            record = starts[k].record
            chosen = Candidate(record.layer, record.pooling)
            states.add([pairs], layers=[chosen.layer], progress=partial(progress, f"read {name}"))
            fitted = fit_head(
                [partial(states.pooled, pairs, chosen)],
                pairs.probabilities,
                pairs.prompts,
                seed=seed,
            )
            starts[k] = _start(fitted, chosen, len(pairs))
    return starts


def fit_teacher(
    states: FrozenStates, pairs: LabelledPairs, candidate: Candidate, *, seed: int
) -> Start:
    """Return a probe of pairs whose states were added, to learn from what it predicts.

    Args:
        states: With those of the candidate's layer.
        pairs: To fit it on.
        candidate: What it reads.
        seed: Of the splits.

    Source:
        arXiv:1503.02531 (distillation); arXiv:2002.05715 (why learning from predictions of a model
        of the same kind regularises).
    """
    fitted = fit_head(
        [partial(states.pooled, pairs, candidate)], pairs.probabilities, pairs.prompts, seed=seed
    )
    return _start(fitted, candidate, len(pairs))


def fit_score_head(
    states: FrozenStates, pairs: LabelledPairs, targets: Array, *, depth: int, seed: int
) -> Start:
    """Return the score head that a classifier starts from; its pairs' states were added.

    Args:
        states: With what the score head reads.
        pairs: To fit it on. Its accuracy is measured on their labels.
        targets: The probabilities that it learns, shape (pairs,).
        depth: Layers of the base, for the record.
        seed: Of the splits.
    """
    fitted = fit_head([partial(states.read, pairs)], targets, pairs.prompts, seed=seed)
    start = _start(fitted, Candidate(depth, "last"), len(pairs))
    decided = pairs.probabilities != 0.5
    if fitted.margins is None or not decided.any():
        return start
    right = pairwise_accuracy(fitted.margins[decided], pairs.probabilities[decided])
    return replace(start, record=replace(start.record, accuracy=float(right.mean())))


def _start(fitted: Fitted, candidate: Candidate, pairs: int) -> Start:
    record = HeadRecord(
        layer=candidate.layer,
        pooling=candidate.pooling,
        l2=fitted.l2,
        accuracy=fitted.accuracy,
        pairs=pairs,
    )
    predicted = None if fitted.margins is None else sigmoid(fitted.margins)
    return Start(fitted.weight, record, predicted)
