"""What a fit of weights comes to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from morlaif_hub.statistics import Estimate, FloatArray, Interval

PENALTIES = tuple(10.0**power for power in range(-2, 5))
"""Of which cross-validation chooses; the larger, the nearer the coefficients are to zero."""
INFLATED = 5.0
"""From this variance inflation factor on, a warning is given."""


class Quality(NamedTuple):
    """How well weights tell the labels of prompts that they were not fitted on.

    Attributes:
        accuracy: Share of pairs, ties apart, in which the preferred response has the higher sum.
        equal_accuracy: The same for weights of 1/K each.
        gain: The first minus the second, pair by pair.
        log_loss: Mean cross-entropy in nats; a coin has 0.693.
        equal_log_loss: The same for equal weights, with a cross-fitted temperature.
    """

    accuracy: Estimate
    equal_accuracy: Estimate
    gain: Estimate
    log_loss: float
    equal_log_loss: float


@dataclass(frozen=True, eq=False)
class WeightFit:
    """Fitted weights, and what is known of them.

    Attributes:
        objectives: Names of the columns.
        weights: Absolute values sum to 1; shape (objectives,).
        intervals: 95 % intervals of the weights, over prompts, at the chosen penalty.
        inflation: Variance inflation factor of each objective, >= 1: how many times less its
            weight is known than if the others' differences had nothing to do with its own.
        scale: scale * (weights . differences) is the log-odds of A.
        l2: The penalty that cross-validation chose, the inverse of scikit-learn's `C`.
        quality: Cross-validated over prompts, the choice of the penalty included.
        held_out_weights: For each pair, the weights that were fitted without its prompt; shape
            (pairs, objectives).
        pairs: How many were fitted on, ties included.
        prompts: Of how many prompts they are.
        one_sided: The side that all labels prefer; None where some prefer the other.
    """

    objectives: tuple[str, ...]
    weights: FloatArray
    intervals: tuple[Interval, ...]
    inflation: FloatArray
    scale: float
    l2: float
    quality: Quality
    held_out_weights: FloatArray
    pairs: int
    prompts: int
    one_sided: Literal["A", "B"] | None

    @property
    def named(self) -> dict[str, float]:
        """The weights by objective."""
        return dict(zip(self.objectives, self.weights.tolist(), strict=True))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what to beware of: signs, collinearity, and weights of no use."""
        kinds = (_side_warnings, _sign_warnings, _inflation_warnings, _quality_warnings)
        return tuple(sentence for kind in kinds for sentence in kind(self))


def _side_warnings(fit: WeightFit) -> Iterator[str]:
    if fit.one_sided:
        yield (
            f"every label prefers response {fit.one_sided}; that is right if the preferred "
            "response was always put there, else the labels are damaged"
        )


def _sign_warnings(fit: WeightFit) -> Iterator[str]:
    for name, weight, interval in zip(fit.objectives, fit.weights, fit.intervals, strict=True):
        if interval.high < 0:
            yield (
                f"{name} has a negative weight, {weight:.2f} ({_bounds(interval)}): of two "
                "responses that are alike otherwise, the one with the lower score is preferred"
            )
    signs = zip(fit.objectives, fit.intervals, strict=True)
    if unsure := [name for name, (low, high) in signs if low <= 0 <= high]:
        yield f"whether these weights are above or below 0 is not shown: {', '.join(unsure)}"


def _inflation_warnings(fit: WeightFit) -> Iterator[str]:
    factors = zip(fit.objectives, fit.inflation, strict=True)
    if inflated := [f"{name} ({factor:.1f})" for name, factor in factors if factor >= INFLATED]:
        yield (
            "how much weight goes to which of these objectives is hardly known, since others go "
            f"along with them (variance inflation factor): {', '.join(inflated)}"
        )


def _quality_warnings(fit: WeightFit) -> Iterator[str]:
    accuracy, gain = fit.quality.accuracy.interval, fit.quality.gain.interval
    if accuracy.low <= 0.5:
        yield (
            "the fitted weights are not shown to tell labels better than chance (accuracy: "
            f"{_bounds(accuracy)})"
        )
    if gain.low <= 0 and len(fit.objectives) > 1:
        better = "worse than" if gain.high < 0 else "not shown to be better than"
        yield (
            f"on prompts that were left out, the fitted weights are {better} equal ones (accuracy "
            f"{fit.quality.gain.value:+.3f}, {_bounds(gain, 3)})"
        )
    if fit.l2 == PENALTIES[-1]:
        yield "the largest penalty was chosen: the scores say little about the labels"


def _bounds(interval: Interval, digits: int = 2) -> str:
    return f"95 % interval {interval.low:.{digits}f} to {interval.high:.{digits}f}"
