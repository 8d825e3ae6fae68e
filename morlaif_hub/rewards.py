"""A bank in the shapes that trainers call: one callable per objective, or one for them all.

The callables follow TRL's interface for reward functions, and anything that calls them with
`prompts` and `completions` can use them. TRL itself is not needed here.

Source:
    https://huggingface.co/docs/trl/main/en/grpo_trainer#using-a-custom-reward-function
"""

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from morlaif_hub.comparisons import Message
from morlaif_hub.errors import ObjectiveMismatchError, OptionError, ScoreError
from morlaif_hub.scalarizers import SCALARIZERS

Text = str | Sequence[Message]
RewardFunction = Callable[..., list[float]]
Combine = Callable[[Tensor], Tensor]


class Scorer(Protocol):
    """What gives each response one calibrated score per objective: a bank, or what acts as one."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the columns of `score`."""

    def score(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """Return scores of shape (batch, objectives) for strings or message lists."""


def reward_functions(bank: Scorer) -> list[RewardFunction]:
    """Return one reward function per objective, in the bank's order, each named after its own.

    A trainer logs each by its name and sums them with its `reward_weights`. However many there
    are, a step costs one pass of the bank: functions that are called with the same list objects
    share its scores. They may be called from several threads.

    Raises:
        ScoreError: When called, if a score is not finite; the message names the objective.

    Example:
        GRPOTrainer(reward_funcs=reward_functions(bank), args=GRPOConfig(reward_weights=[2.0, 1.0]))
    """
    shared = _SharedScores(bank)
    return [_column(shared, objective) for objective in bank.objectives]


def reward_function(
    bank: Scorer,
    *,
    scalarizer: str = "linear",
    weights: Mapping[str, float] | None = None,
    transform: Combine | None = None,
    **options: float,
) -> RewardFunction:
    """Return one reward function that combines the objectives, named after its scalarizer.

    When the trainer offers `log_metric`, every objective's mean score is logged as
    `objective/<name>`, before `transform`.

    Args:
        bank: Scores prompts and responses.
        scalarizer: A name in `SCALARIZERS`.
        weights: One per objective, by name; none means 1/K each.
        transform: Applied to the scores first, such as `log_sigmoid`; keeps their shape.
        options: The scalarizer's own, such as `temperature`.

    Raises:
        UnknownNameError: If there is no such scalarizer.
        ObjectiveMismatchError: If `weights` names other objectives than the bank.
        OptionError: If the scalarizer does not take these weights or options.
        ScoreError: When called, if a score or reward is not finite.

    Example:
        RLOOTrainer(reward_funcs=reward_function(bank, scalarizer="soft_max_min", temperature=0.5))
    """
    combine = bind_scalarizer(
        scalarizer, bank.objectives, weights=weights, transform=transform, options=options
    )

    def reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **_trl_extras: Any,  # TRL adds token ids, its state and every other dataset column
    ) -> list[float]:
        scores = _score(bank, prompts, completions)
        if log_metric is not None and len(scores):
            for objective, mean in zip(bank.objectives, scores.mean(dim=0).tolist(), strict=True):
                log_metric(f"objective/{objective}", mean)
        rewards: list[float] = combine(scores).tolist()
        return rewards

    reward.__name__ = reward.__qualname__ = scalarizer
    return reward


def call_rewards(
    functions: Sequence[Callable[..., Any]], rows: Sequence[Mapping[str, Any]], **given: Any
) -> Tensor:
    """Return what reward functions give to responses, called as TRL calls them.

    Args:
        functions: They may be coroutine functions. None from one counts as 0.
        rows: Of the data set, whose columns but `prompt` are given to the functions.
        given: What else they are given, `completions` among it.

    Returns:
        Float64, shape (responses, functions).

    Raises:
        OptionError: If a function does not give one number for each response.
        ScoreError: If a number is not finite; the message names the function.

    Example:
        >>> call_rewards([lambda completions, **_: map(len, completions)], [{}], completions=["ab"])
        tensor([[2.]], dtype=torch.float64)
    """
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    found = []
    for function in functions:
        values = function(**columns | given)
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        numbers = [0.0 if value is None else float(value) for value in values]
        name = reward_name(function)
        if len(numbers) != len(rows):
            raise OptionError(
                f"reward function {name!r} must give {len(rows)} numbers, got {len(numbers)}"
            )
        for i, number in enumerate(numbers):
            if not math.isfinite(number):
                raise ScoreError(f"reward function {name!r} gave {number} for response {i}")
        found.append(numbers)
    return torch.tensor(found, dtype=torch.float64).T


async def _awaited(values: Any) -> Any:
    return await values


def reward_name(function: Any) -> str:
    """Return what a reward function's figures are logged as: its name, or that of its class."""
    if isinstance(function, functools.partial):
        return reward_name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def bind_scalarizer(
    name: str,
    objectives: Sequence[str],
    *,
    weights: Mapping[str, float] | None = None,
    transform: Combine | None = None,
    options: Mapping[str, float] | None = None,
) -> Combine:
    """Return a function from scores (batch, objectives) to rewards (batch,).

    It is tried out on two rows now, so that a wrong weight or option does not wait for the first
    step of a training run.

    Args:
        name: A name in `SCALARIZERS`.
        objectives: Names of the columns.
        weights: One per objective, by name; none means 1/K each.
        transform: Applied to the scores first, such as `log_sigmoid`; keeps their shape.
        options: The scalarizer's own.

    Raises:
        UnknownNameError: If there is no such scalarizer.
        PluginError: If it is a plugin's and cannot be loaded.
        ObjectiveMismatchError: If `weights` names other objectives.
        OptionError: If the scalarizer does not take these weights or options.
        ScoreError: If a score or reward is not finite.

    Example:
        >>> combine = bind_scalarizer("max_min", ["empathy", "detail"])
        >>> combine(torch.tensor([[4.0, 2.0]]))
        tensor([1.])
    """
    scalarize = SCALARIZERS.get(name)
    weight = weight_tensor(weights, objectives)
    chosen = dict(options or {})
    _check_option_names(name, scalarize, chosen)

    def combine(scores: Tensor) -> Tensor:
        transformed = scores if transform is None else transform(scores)
        _check_scores(transformed, (len(scores), len(objectives)), objectives)
        rewards = scalarize(transformed, weight.to(scores.device), **chosen)
        if rewards.shape != scores.shape[:1]:
            raise OptionError(
                f"scalarizer {name!r} of {SCALARIZERS.package(name)} must return shape (batch,) = "
                f"({len(scores)},), got {tuple(rewards.shape)}; report it there"
            )
        if not bool(rewards.isfinite().all()):
            raise ScoreError(f"scalarizer {name!r} returned a reward that is NaN or infinite")
        return rewards

    combine(torch.zeros(2, len(objectives)))
    return combine


def weight_tensor(weights: Mapping[str, float] | None, objectives: Sequence[str]) -> Tensor:
    """Return weights by name as a float32 tensor in the order of `objectives`; none means 1/K.

    Raises:
        ObjectiveMismatchError: If a name is missing or extra.
        OptionError: If a weight is not finite, or there are no objectives.

    Example:
        >>> weight_tensor({"detail": 3.0, "empathy": 1.0}, ["empathy", "detail"])
        tensor([1., 3.])
    """
    if not objectives:
        raise OptionError("there are no objectives to weigh; a bank needs at least one")
    if weights is None:
        return torch.full((len(objectives),), 1 / len(objectives))
    if set(weights) != set(objectives):
        raise ObjectiveMismatchError(weights, objectives)
    tensor = torch.tensor([weights[name] for name in objectives], dtype=torch.float32)
    for name, finite in zip(objectives, tensor.isfinite().tolist(), strict=True):
        if not finite:
            raise OptionError(
                f"the weight of {name!r} must be a finite 32-bit number, got {weights[name]}"
            )
    return tensor


class _SharedScores:
    """The scores of one step, handed out once per objective."""

    def __init__(self, bank: Scorer) -> None:
        self._bank = bank
        self._lock = threading.Lock()
        # The lists themselves are kept, not their id(): an id is used again once its list is gone.
        self._step: tuple[Sequence[Text], Sequence[Text]] | None = None
        self._columns: dict[str, list[float]] = {}

    def take(
        self, objective: str, prompts: Sequence[Text], completions: Sequence[Text]
    ) -> list[float]:
        """Return one objective's scores, from the last pass if it was of these very lists.

        A column is handed out once: who asks again has begun a new step, perhaps with the same
        lists filled anew.
        """
        with self._lock:
            same = self._step is not None and (
                self._step[0] is prompts and self._step[1] is completions
            )
            if not same or objective not in self._columns:
                columns = _score(self._bank, prompts, completions).T.tolist()
                self._columns = dict(zip(self._bank.objectives, columns, strict=True))
                self._step = (prompts, completions)
            column = self._columns.pop(objective)
            if not self._columns:
                self._step = None  # so that a finished step is not kept in memory
            return column


def _column(shared: _SharedScores, objective: str) -> RewardFunction:
    def reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        **_trl_extras: Any,  # TRL adds token ids, its state and every other dataset column
    ) -> list[float]:
        return shared.take(objective, prompts, completions)

    reward.__name__ = reward.__qualname__ = objective
    return reward


def _score(bank: Scorer, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
    scores = bank.score(prompts, completions)
    _check_scores(scores, (len(completions), len(bank.objectives)), bank.objectives)
    return scores


def _check_scores(scores: Tensor, shape: tuple[int, int], objectives: Sequence[str]) -> None:
    if scores.shape != shape:
        raise OptionError(
            f"scores must have shape (batch, objectives) = {shape}, got {tuple(scores.shape)}"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ScoreError(
            f"the score of objective {objectives[column]!r} in row {row} is "
            f"{scores[row, column].item()}, not finite; its preference model is broken, or its "
            "dtype too small"
        )


def _check_option_names(
    name: str, scalarize: Callable[..., Any], options: dict[str, float]
) -> None:
    parameters = list(inspect.signature(scalarize).parameters.values())[2:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    if unknown := sorted(set(options) - set(known)):
        raise OptionError(
            f"scalarizer {name!r} takes no option {', '.join(unknown)}; "
            f"its options: {', '.join(known) or 'none'}"
        )
