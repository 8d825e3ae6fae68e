"""PPO's arithmetic, against what its definitions say, computed in another way in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morlaif_hub.errors import OptionError
from morlaif_hub.policies import ppo_losses as losses
from morlaif_hub.policies.ppo_config import PPOConfig
from morlaif_hub.statistics import RunningMoments

SEEDS = st.integers(0, 10_000)
SHARES = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def numbers(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def lengths(seed: int, rows: int, tokens: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, tokens + 1, rows).tolist()


def mask_of(its: list[int], tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor(its)[:, None]


def exponential_average(
    rewards: list[float], values: list[float], t: int, gamma: float, lam: float
) -> float:
    """Return equation 16 of arXiv:1506.02438 as it is derived: an average of n-step estimates.

    The last estimate, which goes to the end, has the weight of all those that would go further.
    """
    end = len(rewards)
    total, left = 0.0, 1.0
    for n in range(1, end - t + 1):
        ahead = sum(gamma**i * rewards[t + i] for i in range(n))
        later = gamma**n * values[t + n] if t + n < end else 0.0
        weight = left if t + n == end else left * (1 - lam)
        total += weight * (ahead + later - values[t])
        left *= lam
    return total


@settings(max_examples=15)
@given(SEEDS, SHARES, SHARES)
def test_advantages_are_the_average_of_estimates_that_look_ahead(
    seed: int, gamma: float, lam: float
) -> None:
    its = lengths(seed, 3, 6)
    rewards, values = numbers(seed, 3, 6, 2), numbers(seed + 1, 3, 6, 2)
    mask = mask_of(its, 6)
    found = losses.advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(its):
        for column in range(2):
            r = rewards[row, :length, column].tolist()
            v = values[row, :length, column].tolist()
            expected = [exponential_average(r, v, t, gamma, lam) for t in range(length)]
            assert found[row, :length, column].tolist() == pytest.approx(expected, abs=1e-10)
    assert not found[~mask].any()


@settings(max_examples=15)
@given(SEEDS, st.integers(0, 5))
def test_advantages_do_not_see_padding(seed: int, more: int) -> None:
    its = lengths(seed, 4, 5)
    rewards, values, mask = numbers(seed, 4, 5, 1), numbers(seed + 1, 4, 5, 1), mask_of(its, 5)
    expected = losses.advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    wide = [torch.cat([x, numbers(seed + 2, 4, more, 1)], 1) for x in (rewards, values)]
    found = losses.advantages(*wide, mask_of(its, 5 + more), gamma=0.9, lam=0.8)
    torch.testing.assert_close(found[:, :5], expected)


@settings(max_examples=15)
@given(SEEDS)
def test_advantages_of_a_weighted_sum_are_the_weighted_sum_of_advantages(seed: int) -> None:
    rewards, values, mask = (
        numbers(seed, 3, 5, 2),
        numbers(seed + 1, 3, 5, 2),
        mask_of([5, 2, 1], 5),
    )
    weights = torch.tensor([[0.7], [-2.0]], dtype=torch.float64)
    each = losses.advantages(rewards, values, mask, gamma=1.0, lam=0.95) @ weights
    whole = losses.advantages(rewards @ weights, values @ weights, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(each, whole)


@pytest.mark.parametrize("apart", [False, True])
def test_scores_come_at_the_end_and_divergence_at_every_token(apart: bool) -> None:
    scores = torch.tensor([[1.0], [2.0]])
    cost = torch.tensor([[0.1, 0.2, 9.0], [0.3, 0.4, 0.5]])
    found = losses.token_rewards(scores, cost, mask_of([2, 3], 3), apart=apart)
    if apart:
        assert found[..., 0].tolist() == [[0, 1, 0], [0, 0, 2]]
        torch.testing.assert_close(found[..., 1], -torch.tensor([[0.1, 0.2, 0], [0.3, 0.4, 0.5]]))
    else:
        expected = torch.tensor([[-0.1, 0.8, 0], [-0.3, -0.4, 1.5]])
        torch.testing.assert_close(found[..., 0], expected)


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0.1, 0.2, 5.0]))
def test_the_policy_loss_is_that_of_its_definition(seed: int, clip: float) -> None:
    now, then, advantage = numbers(seed, 20), numbers(seed + 1, 20), numbers(seed + 2, 20)
    found = losses.policy_losses(now, then, advantage, clip=clip)
    for x, a, b, c in zip(found.tolist(), now, then, advantage, strict=True):
        ratio, gain = math.exp(a - b), float(c)
        counted = min(ratio, 1 + clip) if gain >= 0 else max(ratio, 1 - clip)
        expected = -gain * counted
        assert x == pytest.approx(expected, rel=1e-12)


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0.1, 1.0]))
def test_the_value_loss_is_that_of_its_definition(seed: int, clip: float) -> None:
    now, then, returns = numbers(seed, 20), numbers(seed + 1, 20), numbers(seed + 2, 20)
    found = losses.value_losses(now, then, returns, clip=clip)
    for x, a, b, c in zip(found.tolist(), now.tolist(), then.tolist(), returns, strict=True):
        clipped = min(max(a, b - clip), b + clip)
        expected = max((a - float(c)) ** 2, (clipped - float(c)) ** 2) / 2
        assert x == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("divergence", "error"), [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2), (5.7, -0.05)]
)
def test_the_coefficient_follows_the_divergence(divergence: float, error: float) -> None:
    controller = losses.KLController(0.05, 6.0, 10_000)
    controller.update(divergence, 128)
    assert controller.coef == pytest.approx(0.05 * (1 + error * 128 / 10_000), rel=1e-12)


def test_the_coefficient_comes_to_rest_where_the_target_is_met() -> None:
    """Of a policy whose divergence falls with the coefficient, whatever it starts with."""
    for start in (0.01, 1.0):
        controller = losses.KLController(start, 6.0, 1000)
        for _ in range(1500):
            controller.update(0.6 / controller.coef, 32)
        assert controller.coef == pytest.approx(0.1, rel=0.01)


def test_a_fixed_coefficient_stays() -> None:
    controller = losses.KLController(0.05, None, 10_000)
    controller.update(100.0, 128)
    assert controller.coef == 0.05


@settings(max_examples=15)
@given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_numbers_together(seed: int, sizes: list[int]) -> None:
    parts = [100 + numbers(seed + i, n).numpy() for i, n in enumerate(sizes)]
    moments = RunningMoments()
    for part in parts:
        moments.update(part)
    whole = np.concatenate(parts)
    assert (moments.count, moments.mean) == (len(whole), pytest.approx(whole.mean(), rel=1e-12))
    spread = whole.std(ddof=1) if len(whole) > 1 else 0.0
    assert moments.deviation == pytest.approx(spread, rel=1e-9)


def test_numbers_that_are_all_the_same_have_no_deviation() -> None:
    moments = RunningMoments()
    for _ in range(5):
        moments.update(np.full(7, 0.1))
    assert moments.deviation == 0.0


def test_whitened_numbers_and_explained_variance() -> None:
    found = losses.whitened(numbers(0, 1000) * 7 + 3)
    assert float(found.mean()) == pytest.approx(0, abs=1e-9)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert losses.whitened(torch.full((4,), 2.0)).tolist() == [0] * 4
    values, noise = numbers(1, 5000), numbers(2, 5000)
    assert losses.explained_variance(values, values + 7) == pytest.approx(1)
    assert losses.explained_variance(values, values + noise) == pytest.approx(0.5, abs=0.05)
    assert losses.explained_variance(values, torch.ones(5000)) == 0


# Settings.


def test_the_papers_settings() -> None:
    paper = PPOConfig.morlaif("here")
    expected: dict[str, Any] = {
        "output_dir": "here",
        "batch_size": 4,
        "rollouts": 128,
        "epochs": 4,
        "learning_rate": 4e-6,
        "kl_coef": 0.05,
        "kl_target": 6.0,
        "kl_horizon": 10_000,
        "gamma": 1.0,
        "lam": 0.95,
        "clip_range": 0.2,
        "value_clip_range": 0.2,
        "value_coef": 1.0,
        "scale_rewards": True,
        "reward_clip": 10.0,
        "max_new_tokens": 128,
        "temperature": 1.0,
    }
    assert {name: getattr(paper, name) for name in expected} == expected
    steps = paper.max_steps * paper.epochs * paper.rollouts // paper.batch_size
    assert steps == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts": 10, "batch_size": 4}, "multiple of batch_size, got 10 and 4"),
        ({"max_steps": 0}, "max_steps must be greater than 0, got 0"),
        ({"learning_rate": -1e-5}, "learning_rate must be at least 0, got -1e-05"),
        ({"learning_rate": math.nan}, "learning_rate must be at least 0, got nan"),
        ({"lam": 1.5}, "lam must be at most 1, got 1.5"),
        ({"gamma": -0.1}, "gamma must be at least 0"),
        ({"kl_target": 0.0}, "kl_target must be greater than 0"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
        ({"micro_batch_size": 0}, "micro_batch_size must be greater than 0"),
    ],
)
def test_settings_outside_what_is_accepted_are_named(changes: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        PPOConfig(**changes)
