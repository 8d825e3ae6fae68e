"""Ways to make one reward of several objectives: pure, differentiable functions on tensors.

Every scalarizer takes calibrated scores z of shape (batch, objectives), in standard deviations of
each preference model's reference set and higher is better, and weights w of shape (objectives,).
It returns shape (batch,). Rows never influence each other and inputs are never changed. Unless
its docstring says otherwise it combines the weighted scores r = z * w, so a weight stretches an
objective's scale and zero makes it the constant 0.

Source:
    arXiv:2406.07295 (MORLAIF) for the set of functions; each names its own below.
"""

import math
from collections.abc import Callable
from typing import Concatenate

import torch
from torch import Tensor

from morlaif_hub.errors import OptionError, ScoreError
from morlaif_hub.plugins import Registry

Scalarizer = Callable[Concatenate[Tensor, Tensor, ...], Tensor]

SCALARIZERS: Registry[Scalarizer] = Registry("scalarizer")
"""Functions `(scores, weights, **options) -> rewards`; a plugin's entry point is one too."""


@SCALARIZERS.register("linear")
def linear(scores: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted scores: the paper's default.

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> linear(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5, 0.25]))
        tensor([0.])
    """
    return weighted(scores, weights).sum(dim=1)


@SCALARIZERS.register("max_min", "worst_case", "minimax")
def max_min(scores: Tensor, weights: Tensor) -> Tensor:
    """Worst weighted score of each row: what is maximised is the minimum (Rawls).

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> max_min(torch.tensor([[1.0, -2.0]]), torch.ones(2))
        tensor([-2.])
    """
    # amin shares the gradient between equal worst objectives; min would pick the first.
    return weighted(scores, weights).amin(dim=1)


@SCALARIZERS.register("soft_max_min")
def soft_max_min(scores: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Average of the weighted scores that leans towards each row's worst.

    Tends to `max_min` as `temperature` -> 0 and to the plain mean as it -> infinity. A better
    score can lower the result, once it is `temperature` above it: it then counts for less.

    Args:
        scores: Calibrated scores, shape (batch, objectives).
        weights: One weight per objective, shape (objectives,).
        temperature: Softness, in units of the weighted scores. Positive.

    Raises:
        OptionError: If `temperature` is not positive and finite.

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> soft_max_min(torch.tensor([[0.0, 4.0]]), torch.ones(2))
        tensor([0.0719])
    """
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature must be positive and finite, got {temperature}")
    combined = weighted(scores, weights)
    # The result does not depend on the shift; with it, no temperature overflows or gives 0 / 0.
    worst = combined.detach().amin(dim=1, keepdim=True)
    above = combined - worst
    return ((-above / temperature).softmax(dim=1) * above).sum(dim=1) + worst.squeeze(1)


@SCALARIZERS.register("uncertainty_weighted")
def uncertainty_weighted(scores: Tensor, weights: Tensor, *, penalty: float = 0.5) -> Tensor:
    """Mean of the weighted scores minus a multiple of their population variance.

    Rows whose objectives disagree are worth less. A better score can lower the result, once it
    is far above the others.

    Args:
        scores: Calibrated scores, shape (batch, objectives).
        weights: One weight per objective, shape (objectives,).
        penalty: What one unit of variance costs. Not negative.

    Raises:
        OptionError: If `penalty` is negative or not finite.

    Source:
        https://arxiv.org/abs/2310.02743

    Example:
        >>> uncertainty_weighted(torch.tensor([[1.0, 3.0]]), torch.ones(2))
        tensor([1.5000])
    """
    if not 0 <= penalty < math.inf:
        raise OptionError(f"penalty must be finite and not negative, got {penalty}")
    combined = weighted(scores, weights)
    mean = combined.mean(dim=1, keepdim=True)
    variance = (combined - mean).square().mean(dim=1)  # Tensor.var warns about an empty batch
    return mean.squeeze(1) - penalty * variance


@SCALARIZERS.register("lower_quantile")
def lower_quantile(scores: Tensor, weights: Tensor, *, quantile: float = 1 / 3) -> Tensor:
    """Mean of each row's lowest weighted scores: the lowest third by default.

    How many are taken is `quantile` times the number of objectives, rounded up: at least one.

    Args:
        scores: Calibrated scores, shape (batch, objectives).
        weights: One weight per objective, shape (objectives,).
        quantile: Share of the objectives that counts, above 0 and at most 1 (the mean).

    Raises:
        OptionError: If `quantile` is not above 0 and at most 1.

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> lower_quantile(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.ones(4))
        tensor([0.5000])
    """
    if not 0 < quantile <= 1:
        raise OptionError(f"quantile must be above 0 and at most 1, got {quantile}")
    combined = weighted(scores, weights)
    # 0.07 * 100 is a little above 7 in floating point, and must not become 8.
    count = math.ceil(quantile * combined.shape[1] - 1e-9)
    return combined.topk(max(count, 1), dim=1, largest=False).values.mean(dim=1)


@SCALARIZERS.register("max_median")
def max_median(scores: Tensor, weights: Tensor) -> Tensor:
    """Median of each row's weighted scores; the mean of the middle two for an even number.

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> max_median(torch.tensor([[4.0, 1.0, 2.0, -9.0]]), torch.ones(4))
        tensor([1.5000])
    """
    ordered = weighted(scores, weights).sort(dim=1).values
    count = ordered.shape[1]
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2


@SCALARIZERS.register("bernoulli_nash")
def bernoulli_nash(scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted geometric mean of sigmoid(z), in [0, 1]: Nash's product of utilities.

    Weights are the exponents, divided by their sum; they do not multiply the scores. So only
    their proportions matter and an objective of weight zero has no say.

    Raises:
        OptionError: If a weight is negative or all are zero.

    Source:
        https://arxiv.org/abs/2406.07295

    Example:
        >>> bernoulli_nash(torch.tensor([[0.0, 0.0]]), torch.tensor([1.0, 3.0]))
        tensor([0.5000])
    """
    _check(scores, weights)
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise OptionError(
            "bernoulli_nash needs weights of at least 0, one of them positive, got "
            f"{weights.tolist()}; for a negative weight use linear"
        )
    # In logarithms: the product itself would underflow to 0, and its gradient to NaN.
    exponents = weights / weights.sum()
    return (exponents * torch.nn.functional.logsigmoid(scores)).sum(dim=1).exp()


def log_sigmoid(scores: Tensor, *, center: float = 0.0) -> Tensor:
    """Return log(sigmoid(z - center)): a transform to put before any scalarizer.

    Scores well above the centre gain next to nothing, so an objective cannot buy off the others:
    a sum of the results acts like a logical AND, and curbs reward hacking.

    Args:
        scores: Calibrated scores, shape (batch, objectives).
        center: The score, in standard deviations, from which on improvements count less.

    Returns:
        Shape (batch, objectives), negative.

    Raises:
        ScoreError: If a score is not finite.
        OptionError: If `center` is not finite or the shape is wrong.

    Source:
        https://arxiv.org/abs/2402.00742

    Example:
        >>> log_sigmoid(torch.tensor([[0.0, 9.0]]))
        tensor([[-6.9315e-01, -1.2340e-04]])
    """
    if not math.isfinite(center):
        raise OptionError(f"center must be finite, got {center}")
    _check_scores(scores)
    return torch.nn.functional.logsigmoid(scores - center)


def weighted(scores: Tensor, weights: Tensor) -> Tensor:
    """Return r = z * w, checked: how a scalarizer usually begins, a plugin's too.

    Raises:
        ScoreError: If a score is not finite; the message names row and objective.
        OptionError: If a shape or type is wrong or a weight is not finite.

    Example:
        >>> weighted(torch.tensor([[1.0, -2.0]]), torch.tensor([0.5, 2.0]))
        tensor([[ 0.5000, -4.0000]])
    """
    _check(scores, weights)
    return scores * weights


def _check(scores: Tensor, weights: Tensor) -> None:
    _check_scores(scores)
    if weights.shape != scores.shape[1:]:
        raise OptionError(
            f"weights must have shape (objectives,) = ({scores.shape[1]},) to go with scores of "
            f"shape {tuple(scores.shape)}, got {tuple(weights.shape)}"
        )
    if not bool(weights.isfinite().all()):
        raise OptionError(f"weights must be finite, got {weights.tolist()}")


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0 or not scores.is_floating_point():
        raise OptionError(
            "scores must be floating-point numbers of shape (batch, objectives) with at least one "
            f"objective, got {scores.dtype} of shape {tuple(scores.shape)}"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        row, objective = (~finite).nonzero()[0].tolist()
        value = scores[row, objective].item()
        raise ScoreError(f"the score in row {row} of objective {objective} is {value}, not finite")
