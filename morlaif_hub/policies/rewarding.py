"""A bank's rewards as several processes call them: what fails in one fails in all."""

from collections.abc import Sequence
from typing import Any

from morlaif_hub.policies.settings import RewardSpec
from morlaif_hub.rewards import RewardFunction, Text, reward_function, reward_functions
from morlaif_hub.scoring.processes import Processes


def reward_calls(reward: RewardSpec, processes: Processes) -> list[RewardFunction]:
    """Return what trainers call: with linear weights one function per objective, else one.

    Either way a step costs one pass of the bank.

    Args:
        reward: The bank, and how its scores become one.
        processes: All of them call these functions equally often.

    Raises:
        ScoreError: When called, in every process, if a score or reward of one is not finite.
    """
    if reward.scalarizer == "linear":
        functions = reward_functions(reward.bank)
    else:
        functions = [
            reward_function(reward.bank, scalarizer=reward.scalarizer, weights=reward.weights)
        ]
    if processes.count == 1:
        return functions
    return [_in_all(function, processes) for function in functions]


def reward_weights(reward: RewardSpec) -> list[float] | None:
    """Return the weights of several functions; None for one that has them in it."""
    return list(reward.named_weights.values()) if reward.scalarizer == "linear" else None


def _in_all(function: RewardFunction, processes: Processes) -> RewardFunction:
    def reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        **extras: Any,  # what the trainer adds
    ) -> list[float]:
        found: list[float] = []
        # Else the others would wait for ever for one that failed.
        processes.together(lambda: found.extend(function(prompts, completions, **extras)))
        return found

    reward.__name__ = reward.__qualname__ = function.__name__
    return reward
