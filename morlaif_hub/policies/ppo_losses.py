"""What PPO computes from numbers alone: advantages, losses, and how rewards and KL are steered.

Sources:
    arXiv:1707.06347 (PPO); arXiv:1506.02438 (generalised advantage estimation); arXiv:1909.08593
    (the KL in the reward and its controller).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def token_rewards(scores: Tensor, cost: Tensor, mask: Tensor, *, apart: bool) -> Tensor:
    """Return what each token is rewarded with: the scores at a response's last, less its own cost.

    Args:
        scores: Of responses, shape (rows, columns).
        cost: Of each token's divergence, shape (rows, tokens).
        mask: Which tokens there are, from the left, shape (rows, tokens).
        apart: Whether the cost has a column of its own, after the scores.

    Returns:
        Shape (rows, tokens, columns), or one column more; 0 where there is no token.
    """
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    at_end, cost = last[..., None] * scores[:, None], (cost * mask)[..., None]
    return torch.cat([at_end, -cost], -1) if apart else at_end - cost


def advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Return generalised advantage estimates: how much better than its value each token came out.

    Args:
        rewards: Of each token, shape (rows, tokens, columns); columns do not meet.
        values: Of the state before each token, same shape. After a row's last token it is 0.
        mask: Which tokens there are, from the left, shape (rows, tokens).
        gamma: Discount for each token.
        lam: How much rewards are looked at rather than the values of later states, from 0 to 1.

    Returns:
        Same shape, 0 where there is no token: equation 16 of arXiv:1506.02438.
    """
    values = values * mask[..., None]
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    surprises = (rewards + gamma * following - values) * mask[..., None]
    estimates, later = torch.zeros_like(surprises), torch.zeros_like(surprises[:, 0])
    for t in reversed(range(surprises.shape[1])):
        estimates[:, t] = later = surprises[:, t] + gamma * lam * later
    return estimates


def whitened(numbers: Tensor) -> Tensor:
    """Return numbers with mean 0 and variance 1; zeros where they are all the same."""
    centred = numbers - numbers.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)


def policy_losses(now: Tensor, then: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """Return the clipped loss of each token: equation 7 of arXiv:1707.06347, with its sign turned.

    Args:
        now: Log-probabilities of the tokens, any shape.
        then: What they were when the tokens were sampled.
        advantage: Of each token.
        clip: How far from 1 their ratio still counts.
    """
    ratio = (now - then).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def value_losses(now: Tensor, then: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Return half of each value's squared error, or that of the clipped value if it is larger.

    Args:
        now: Values, any shape.
        then: What they were before the round.
        returns: What they should be.
        clip: How far from `then` they count.
    """
    clipped = then + (now - then).clamp(-clip, clip)
    return torch.maximum((now - returns).square(), (clipped - returns).square()) / 2


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return the share of the returns' variance that values explain, <= 1; 0 if there is none."""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance else 0.0


@dataclass
class KLController:
    """The coefficient of the KL, steered to a target: arXiv:1909.08593, section 2.2.

    Attributes:
        coef: As it is now.
        target: Nats of a response; None leaves the coefficient alone.
        horizon: Responses in which it changes by about a fifth at most.
    """

    coef: float
    target: float | None
    horizon: int

    def update(self, divergence: float, responses: int) -> None:
        """Take account of the mean divergence of some responses, in nats."""
        if self.target is not None:
            error = min(max(divergence / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * responses / self.horizon
