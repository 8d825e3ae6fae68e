"""A scalarizer: a plain function from scores and weights to one reward per row."""

import math

import torch
from torch import Tensor

from morlaif_hub.errors import OptionError
from morlaif_hub.scalarizers import weighted


def certainty_equivalent(scores: Tensor, weights: Tensor, *, aversion: float = 1.0) -> Tensor:
    """Sure score that is worth as much as drawing one of the weighted scores at random.

    Lies between the worst and the mean; a better score never lowers it.

    Args:
        scores: Calibrated scores, shape (batch, objectives).
        weights: One weight per objective, shape (objectives,).
        aversion: Aversion to risk, per unit of the weighted scores. Positive.

    Raises:
        OptionError: If `aversion` is not positive and finite.

    Source:
        https://en.wikipedia.org/wiki/Entropic_risk_measure

    Example:
        >>> certainty_equivalent(torch.tensor([[0.0, 4.0]]), torch.ones(2))
        tensor([0.6750])
    """
    if not 0 < aversion < math.inf:
        raise OptionError(f"aversion must be positive and finite, got {aversion}")
    combined = weighted(scores, weights)
    log_mean = torch.logsumexp(-aversion * combined, dim=1) - math.log(combined.shape[1])
    return -log_mean / aversion
