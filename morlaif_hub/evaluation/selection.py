"""What choosing among sampled responses by a bank's scores brings, against choosing at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison, Message
from morlaif_hub.feedback.dataset import FeedbackDataset
from morlaif_hub.statistics import bootstrap_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The responses to one prompt, with what is known of each.

    Attributes:
        prompt: The prompt.
        texts: The responses.
        scores: Calibrated scores, shape (responses, objectives).
        judged: By principle, the share of the prompt's other responses that the judge finds
            worse, in [0, 1]; shape (responses,). A tie counts one half.
    """

    prompt: tuple[Message, ...]
    texts: tuple[str, ...]
    scores: Array
    judged: Mapping[str, Array]

    @property
    def words(self) -> Array:
        """Length of each response."""
        return np.array([float(len(text.split())) for text in self.texts])

    def best(self, weights: Array) -> int:
        """Return which response has the highest weighted score."""
        return int(np.argmax(self.scores @ weights))


def join_candidates(
    sampled: Sequence[tuple[tuple[Message, ...], Sequence[str]]],
    scores: Array,
    feedback: Sequence[FeedbackDataset],
) -> list[Candidates]:
    """Return the responses to held-out prompts with their scores and what the judge says of them.

    Args:
        sampled: Prompts with their responses.
        scores: Calibrated scores of all responses, in order, shape (responses, objectives).
        feedback: Datasets whose test splits have every pair of a prompt's responses.
    """
    verdicts = {
        dataset.manifest.principle.name: {
            comparison.id: by_text_order(comparison, verdict.probability_a)
            for comparison, verdict in dataset.splits.test
        }
        for dataset in feedback
    }
    ends = np.cumsum([len(texts) for _, texts in sampled])[:-1]
    return [
        Candidates(
            prompt,
            tuple(texts),
            rows,
            {name: judged_shares(prompt, texts, of_one) for name, of_one in verdicts.items()},
        )
        for (prompt, texts), rows in zip(sampled, np.split(scores, ends), strict=True)
    ]


def judged_shares(
    prompt: Sequence[Message],
    texts: Sequence[str],
    verdicts: Mapping[str, float],
) -> Array:
    """Return for each response the share of the others that the judge finds worse.

    Args:
        prompt: The prompt of all responses.
        texts: The responses.
        verdicts: By comparison id, the probability that the response that sorts first as text is
            the better one; see `by_text_order`.

    Raises:
        KeyError: If a pair of the responses was not judged.
    """
    shares = np.zeros(len(texts))
    for i, text in enumerate(texts):
        wins = []
        for other in texts:
            if other == text:
                continue
            pair = Comparison(tuple(prompt), min(text, other), max(text, other))
            first = verdicts[pair.id]
            wins.append(first if text < other else 1.0 - first)
        shares[i] = np.mean(0.5 + 0.5 * np.sign(np.array(wins) - 0.5)) if wins else 0.5
    return shares


def by_text_order(comparison: Comparison, probability_a: float) -> float:
    """Return the probability that the response that sorts first as text is the better one."""
    return probability_a if comparison.response_a < comparison.response_b else 1.0 - probability_a


def steered(candidates: Sequence[Candidates], weights: Array, principle: str) -> dict[str, Any]:
    """Return what the highest weighted score chooses, beside the mean of all candidates.

    The measure is the judge's, not the score that chose: `random` and `chosen` are the share of
    the prompt's other responses that the judge finds worse on the principle. The interval of
    their difference resamples prompts.
    """
    picks = [c.best(weights) for c in candidates]
    random = np.array([c.judged[principle].mean() for c in candidates])
    chosen = np.array([c.judged[principle][i] for c, i in zip(candidates, picks, strict=True)])
    interval = bootstrap_interval(chosen - random, range(len(candidates)))
    words = [c.words for c in candidates]
    return {
        "random": float(random.mean()),
        "chosen": float(chosen.mean()),
        "difference_interval": [interval.low, interval.high],
        "words_random": float(np.mean([w.mean() for w in words])),
        "words_chosen": float(np.mean([w[i] for w, i in zip(words, picks, strict=True)])),
    }


def sweep(
    candidates: Sequence[Candidates],
    columns: tuple[int, int],
    names: tuple[str, str],
    shares: Sequence[float],
) -> dict[str, Any]:
    """Return mean length and scores of what is chosen as weight moves between two objectives.

    Args:
        candidates: One per prompt.
        columns: Of the two objectives in the scores.
        names: Of the two objectives.
        shares: Weight of the second; the first has the rest.
    """
    words: list[float] = []
    scores: dict[str, list[float]] = {name: [] for name in names}
    for share in shares:
        weights = np.zeros(candidates[0].scores.shape[1])
        weights[columns[0]], weights[columns[1]] = 1.0 - share, share
        picks = [c.best(weights) for c in candidates]
        chosen = np.array([c.scores[i] for c, i in zip(candidates, picks, strict=True)])
        words.append(float(np.mean([c.words[i] for c, i in zip(candidates, picks, strict=True)])))
        for name, column in zip(names, columns, strict=True):
            scores[name].append(float(chosen[:, column].mean()))
    return {
        "from": names[0],
        "to": names[1],
        "share": list(shares),
        "words": words,
        "scores": scores,
    }
