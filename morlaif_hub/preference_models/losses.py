"""What all trainers of preference models minimise, and how they decide which weights to keep."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from morlaif_hub.errors import TrainingError
from morlaif_hub.preference_models.settings import Loss
from morlaif_hub.statistics import (
    SMALLEST_PROBABILITY,
    fit_temperature,
    pairwise_accuracy,
)

Array = NDArray[np.float64]


class Trained(NamedTuple):
    """What training gave.

    Attributes:
        start_accuracy: Share of the decided validation pairs whose better side scores higher,
            before training; None without such pairs.
        trained_accuracy: The same for the best of the trained checkpoints.
        steps: Of the checkpoint that is kept; 0 for the start.
        kept: Whether that is a trained one.
    """

    start_accuracy: float | None
    trained_accuracy: float | None
    steps: int
    kept: Literal["trained", "start"]


def pair_losses(
    differences: Tensor, probabilities: Tensor, *, loss: Loss, label_smoothing: float = 0.0
) -> Tensor:
    """Return the loss of each pair, float32, shape (pairs,); its mean is what is minimised.

    Args:
        differences: Score of the first response minus that of the second, shape (pairs,).
        probabilities: Probability that the first is better, shape (pairs,); one half is a tie.
        loss: `soft` is the cross-entropy to the probabilities; `margin` is minus the log of
            sigmoid(d - m), d the lead of the better response and m the log-odds, at least 0, of its
            being better. A tie, which has no better side, is the same to both.
        label_smoothing: How far probabilities are drawn to one half, in [0, 1).

    Source:
        Bradley and Terry, Biometrika 39 (1952), 324-345; with a margin: Llama 2, arXiv:2307.09288,
        equation 2.

    Example:
        >>> pair_losses(torch.zeros(2), torch.tensor([1.0, 0.5]), loss="soft").tolist()
        [0.6931471824645996, 0.6931471824645996]
    """
    d = differences.float()
    p = probabilities.to(d) * (1 - label_smoothing) + label_smoothing / 2
    if loss == "soft":
        return nn.functional.softplus(d) - p * d
    kept_off = p.double().clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    margins = kept_off.logit().abs().to(d)
    first = nn.functional.softplus(margins - d)
    second = nn.functional.softplus(margins + d)
    better = (torch.sign(p - 0.5) + 1) / 2  # one half for a tie
    return better * first + (1 - better) * second


class Check(NamedTuple):
    """How good scores are on validation pairs.

    Attributes:
        log_loss: The soft loss at the best temperature, in nats: how large scores are does not
            matter, since they are calibrated later.
        accuracy: Share of the decided pairs whose better side scores higher; None without any.
    """

    log_loss: float
    accuracy: float | None


def check_scores(differences: Array, probabilities: Array) -> Check:
    """Return how good score differences are on labelled pairs, at least one.

    Args:
        differences: Score of the first response minus that of the second, shape (pairs,).
        probabilities: Probability that the first is better, shape (pairs,).

    Raises:
        TrainingError: If a difference is NaN or infinite.
    """
    if not np.isfinite(differences).all():
        raise TrainingError(
            "scores of validation pairs are not finite; lower the learning rate, or train in "
            "float32"
        )
    d = differences / fit_temperature(differences, probabilities)
    log_loss = float((np.logaddexp(0.0, d) - probabilities * d).mean())
    decided = probabilities != 0.5
    right = pairwise_accuracy(differences, probabilities)[decided]
    return Check(log_loss, float(right.mean()) if decided.any() else None)


@dataclass
class Selection:
    """Which checkpoint is the best so far, and whether to go on.

    Attributes:
        start: The check before training.
        trained: The best of the later ones.
        trained_at: Its step.
        without_better: Checks since the best one of all.
    """

    start: Check | None = None
    trained: Check | None = None
    trained_at: int = 0
    without_better: int = 0

    @property
    def kept(self) -> Literal["trained", "start"]:
        """Which one is kept: of equally good ones, the earlier."""
        if self.start and self.trained and self.start.log_loss <= self.trained.log_loss:
            return "start"
        return "trained"

    def add(self, check: Check, step: int) -> bool:
        """Take a check's result into account; return whether it is the best of all so far.

        Args:
            check: The first one is that of the start.
            step: How many steps were done.
        """
        if self.start is None:
            self.start = check
            return True
        if self.trained is None or check.log_loss < self.trained.log_loss:
            self.trained, self.trained_at = check, step
            if self.kept == "trained":
                self.without_better = 0
                return True
        self.without_better += 1
        return False

    def result(self) -> Trained:
        """Return what training gave."""
        return Trained(
            start_accuracy=self.start.accuracy if self.start else None,
            trained_accuracy=self.trained.accuracy if self.trained else None,
            steps=self.trained_at if self.kept == "trained" else 0,
            kept=self.kept,
        )
