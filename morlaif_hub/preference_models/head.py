"""Heads fitted on a frozen base: a probe, or the start of what is then trained.

From little data a random head learns the wrong thing. A logistic fit on the frozen base's states
points it the right way, and often is all that the data can tell. What it reads and how much it is
held back are chosen by cross-validation over whole prompts.

Source:
    The rule of one standard error: T. Hastie, R. Tibshirani and J. Friedman, "The elements of
    statistical learning" (2009), section 7.10.
    arXiv:2202.10054 (linear probing, then fine-tuning); arXiv:1610.01644 (linear probes).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.statistics import fit_logistic, pairwise_accuracy

Array = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in (4.0, 3.5, 3.0, 2.5, 2.0, 1.0))
"""From the strongest, of features whose differences have a variance of 1."""
FOLDS = 5
_CLOSE = 1e-6  # of a loss that is only compared
_TINY = 1e-6  # of a feature's spread: what never changes tells nothing


class Sides(NamedTuple):
    """States of the responses A and of the responses B, each of shape (pairs, width)."""

    a: Array
    b: Array


@dataclass(frozen=True)
class Fitted:
    """A fitted head.

    Attributes:
        weight: Shape (width,), in units of score per unit of state.
        choice: Which of the candidates it reads.
        l2: The penalty, as in `PENALTIES`.
        loss: Cross-validated cross-entropy, in nats per pair; None if there was one prompt only.
        accuracy: Cross-validated pairwise accuracy, in [0, 1]; None likewise. That of the best of
            many choices promises slightly too much.
        margins: Log-odds of A being better, of each pair by a head that was fitted on other
            prompts, shape (pairs,); None likewise.
    """

    weight: Array
    choice: int
    l2: float
    loss: float | None
    accuracy: float | None
    margins: Array | None


def fit_head(
    candidates: Iterable[Callable[[], Sides]],
    probabilities: Array,
    groups: Sequence[str],
    *,
    seed: int,
    progress: Callable[[], None] | None = None,
) -> Fitted:
    """Return the head that predicts best which response is better.

    Each feature is measured in its own standard deviations, since a few of a language model's
    states are a thousand times as large as the others. The penalty is that with the least
    cross-validated cross-entropy, which tells more from few pairs than accuracy does. A candidate
    takes the place of an earlier one only if its cross-entropy is less by more than one standard
    error: else the best of many is the luckiest.

    Args:
        candidates: What a head could read, the likeliest first, each computed when it is its turn.
        probabilities: Probability that A is better, one half for a tie, shape (pairs,).
        groups: The prompt of each pair; pairs of one prompt stay on one side of a split.
        seed: Of the split.
        progress: Called after each candidate.
    """
    folds = _folds(groups, seed)
    best: Fitted | None = None
    for choice, states in enumerate(candidates):
        fitted = _fit(_Scaled.of(states()), probabilities, folds, choice)
        if best is None or _is_better(fitted, best, probabilities):
            best = fitted
        if progress:
            progress()
    if best is None:
        raise AssertionError("there is nothing that a head could read")
    return best


def _is_better(one: Fitted, other: Fitted, probabilities: Array) -> bool:
    if one.margins is None or other.margins is None:
        return False
    gains = _losses(other.margins, probabilities) - _losses(one.margins, probabilities)
    error = gains.std() / np.sqrt(len(gains))
    return bool(gains.mean() > error)


def _losses(margins: Array, probabilities: Array) -> Array:
    losses: Array = np.logaddexp(0.0, margins) - probabilities * margins
    return losses


class _Scaled(NamedTuple):
    """Differences in as few coordinates as there are pairs, and the way back.

    Attributes:
        x: Shape (pairs, coordinates), with a variance of 1 over all features.
        back: Takes coefficients of the coordinates to those of the states.
    """

    x: Array
    back: Callable[[Array], Array]

    @classmethod
    def of(cls, sides: Sides) -> "_Scaled":
        spread = np.concatenate(sides).std(axis=0)
        spread = np.maximum(spread, _TINY * max(float(spread.max()), _TINY))
        differences = (sides.a - sides.b) / spread
        unit = float(np.sqrt(np.mean(differences**2))) or 1.0
        x, scale = differences / unit, spread * unit
        pairs, width = x.shape
        if pairs >= width:
            return cls(x, lambda w: w / scale)
        # A ridge keeps coefficients in the span of the pairs, so the pairs are coordinates enough.
        values, vectors = np.linalg.eigh(x @ x.T)
        kept = values > values[-1] * 1e-12 if values[-1] > 0 else values >= values[-1]
        roots = np.sqrt(np.maximum(values[kept], np.finfo(float).tiny))
        basis = vectors[:, kept]
        return cls(basis * roots, lambda w: x.T @ (basis @ (w / roots)) / scale)


def _fit(scaled: _Scaled, probabilities: Array, folds: NDArray[np.intp], choice: int) -> Fitted:
    l2, loss, accuracy, margins = PENALTIES[0], None, None, None
    if len(np.unique(folds)) > 1:
        found = _held_out_margins(scaled.x, probabilities, folds)
        losses = [float(_losses(m, probabilities).mean()) for m in found]
        at = int(np.argmin(losses))  # of equally good ones the strongest
        l2, loss, margins = PENALTIES[at], losses[at], found[at]
        decided = probabilities != 0.5
        right = pairwise_accuracy(margins[decided], probabilities[decided])
        accuracy = float(right.mean()) if decided.any() else None
    weight = scaled.back(fit_logistic(scaled.x, probabilities, l2=l2))
    return Fitted(weight, choice, l2, loss, accuracy, margins)


def _held_out_margins(x: Array, probabilities: Array, folds: NDArray[np.intp]) -> list[Array]:
    """Return, for each penalty, log-odds of every pair from a fit on the other folds."""
    margins = [np.empty(len(x)) for _ in PENALTIES]
    for fold in np.unique(folds):
        out = folds == fold
        kept, labels = x[~out], probabilities[~out]
        start: Array | None = None
        for l2, found in zip(PENALTIES, margins, strict=True):
            start = fit_logistic(kept, labels, l2=l2, start=start, tolerance=_CLOSE)
            found[out] = x[out] @ start
    return margins


def _folds(groups: Sequence[str], seed: int) -> NDArray[np.intp]:
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(order[i]) % FOLDS for i, name in enumerate(names)}
    return np.array([fold[name] for name in groups])
