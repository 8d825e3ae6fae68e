"""How a policy is trained and what for: the same words for every algorithm."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from morlaif_hub.bank.bank import PMBank
from morlaif_hub.comparisons import Message
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import PolicyManifest
from morlaif_hub.models.generation import SamplingSettings
from morlaif_hub.policies.measure import HeldOut
from morlaif_hub.rewards import bind_scalarizer

Algorithm = Literal["grpo", "rloo", "online-dpo", "ppo"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Progress = Callable[[int], None]
Prompts = Sequence[Sequence[Message]]

TOKENS_AT_ONCE = 4096
"""Of completions, whose activations are kept for one backward pass."""
COLOCATE = "colocate"


class _Defaults(NamedTuple):
    """What an algorithm is run with where nothing else is asked for."""

    prompts_per_step: int
    completions: int
    beta: float
    learning_rate: float


_DEFAULTS: dict[str, _Defaults] = {
    "grpo": _Defaults(4, 8, beta=0.02, learning_rate=5e-4),
    "rloo": _Defaults(4, 8, beta=0.05, learning_rate=5e-4),
    "online-dpo": _Defaults(16, 2, beta=0.1, learning_rate=5e-4),
    "ppo": _Defaults(32, 1, beta=0.05, learning_rate=2e-4),
}
_FULL_RATE = 1e-5


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    What is None is chosen by the algorithm; `planned` says how.

    Attributes:
        algorithm: GRPO (arXiv:2402.03300), RLOO (arXiv:2402.14740) and online DPO
            (arXiv:2402.04792) are TRL's; PPO (arXiv:1707.06347) is ours.
        max_steps: Steps at the most. A step samples completions, scores them and learns from them.
        epochs: Passes over the prompts; then `max_steps` follows from it.
        max_kl: Stop at the first check above this mean KL per token to the reference policy, in
            nats, and keep the last checkpoint below it; None for no limit.
        check_every: Steps between two checks on held-out prompts.
        prompts_per_step: Different prompts in a step, of all processes together.
        completions: Sampled per prompt in a step: two for online DPO, one for PPO.
        batch_size: Completions that one process learns from at once, which changes what GRPO and
            RLOO learn by rounding only; None for as many as fit `TOKENS_AT_ONCE`.
        max_new_tokens: Limit of a completion.
        temperature: Of sampling, in training and in checks.
        learning_rate: Constant.
        beta: Weight of the KL: in the loss (GRPO), in the reward (RLOO, PPO at the start) or of
            the implicit reward (online DPO).
        aggregation: How GRPO makes one advantage of several objectives with linear weights:
            `normalize_then_sum` is GDPO's (arXiv:2601.05242).
        form: Whether a LoRA or all weights are trained.
        rank: Of the LoRA.
        seed: Of everything that is drawn.
        dtype: Of the base under a LoRA, which is in float32 itself. All weights are trained in
            float32, and computed with in this type.
        vllm: The URL of TRL's vLLM server to sample with, or `colocate` for vLLM on the GPUs that
            train; None for neither.
    """

    algorithm: Algorithm = "grpo"
    max_steps: int = 10
    epochs: float | None = None
    max_kl: float | None = None
    check_every: int = 2
    prompts_per_step: int | None = None
    completions: int | None = None
    batch_size: int | None = None
    max_new_tokens: int = 32
    temperature: float = 0.8
    learning_rate: float | None = None
    beta: float | None = None
    aggregation: Aggregation = "sum_then_normalize"
    form: Literal["lora", "full"] = "lora"
    rank: int = 8
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    vllm: str | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in _DEFAULTS:
            raise OptionError(
                f"algorithm must be one of {', '.join(_DEFAULTS)}, got {self.algorithm!r}"
            )
        positive = (
            "max_steps epochs max_kl check_every prompts_per_step batch_size rank learning_rate"
        )
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name} must be greater than 0, got {value}")
        if self.beta is not None and not self.beta >= 0:
            raise OptionError(f"beta must not be negative, got {self.beta}")
        self._check_completions()
        self._check_algorithm()

    def _check_completions(self) -> None:
        wanted = {"online-dpo": 2, "ppo": 1}.get(self.algorithm)
        if wanted is not None and self.completions not in (None, wanted):
            raise OptionError(
                f"completions must be {wanted} for {self.algorithm}, got {self.completions}; "
                "prompts_per_step says how many prompts there are in a step"
            )
        if wanted is None and self.completions is not None and self.completions < 2:
            raise OptionError(
                f"completions must be at least 2, got {self.completions}: {self.algorithm} "
                "compares the completions of one prompt"
            )

    def _check_algorithm(self) -> None:
        if self.algorithm != "grpo" and self.aggregation != "sum_then_normalize":
            raise OptionError(
                f"aggregation {self.aggregation!r} is for grpo, not for {self.algorithm}"
            )
        if self.vllm is None:
            return
        if self.algorithm == "ppo":
            raise OptionError("vLLM samples for grpo, rloo and online-dpo; ppo samples by itself")
        if self.vllm != COLOCATE and not self.vllm.startswith(("http://", "https://")):
            raise OptionError(
                f"vllm must be {COLOCATE!r} or the URL of a server, such as "
                f"http://localhost:8000, got {self.vllm!r}"
            )

    def planned(self, prompts: int) -> "PolicySettings":
        """Return these settings with nothing left open, for so many prompts to train on.

        Raises:
            OptionError: If there are fewer prompts than a step is to have, or the temperature is 0.
        """
        if not self.temperature > 0:
            raise OptionError(
                f"temperature must be greater than 0 to train, got {self.temperature}: equal "
                "completions have nothing to compare"
            )
        usual = _DEFAULTS[self.algorithm]
        at_once = self.prompts_per_step or min(usual.prompts_per_step, prompts)
        if at_once > prompts:
            raise OptionError(
                f"prompts_per_step is {at_once}, but there are {prompts} prompts to train on; "
                "lower it or give more prompts"
            )
        steps = self.max_steps
        if self.epochs is not None:
            steps = max(1, math.ceil(self.epochs * prompts / at_once))
        rate = usual.learning_rate if self.form == "lora" else _FULL_RATE
        return replace(
            self,
            max_steps=steps,
            prompts_per_step=at_once,
            completions=self.completions or usual.completions,
            learning_rate=self.learning_rate or rate,
            beta=usual.beta if self.beta is None else self.beta,
        )

    @property
    def step_rows(self) -> int:
        """Completions of a step, of all processes together; of planned settings only."""
        return (self.prompts_per_step or 0) * (self.completions or 0)

    def rows_at_once(self, processes: int) -> int:
        """Return how many completions each of so many processes learns from at once.

        Raises:
            OptionError: If a step cannot be divided like this.
        """
        each, rest = divmod(self.step_rows, processes)
        if rest or not each:
            raise OptionError(
                f"a step's {self.step_rows} completions cannot be shared by {processes} processes; "
                "prompts_per_step times completions has to be a multiple of their number"
            )
        group = 2 if self.algorithm == "online-dpo" else 1  # a pair is learnt from as a whole
        if each % group:
            raise OptionError(
                f"prompts_per_step must be a multiple of the {processes} processes, got "
                f"{self.prompts_per_step}"
            )
        if self.batch_size is None:
            fitting = max(group, TOKENS_AT_ONCE // self.max_new_tokens)
            sizes = [n for n in range(group, each + 1, group) if each % n == 0 and n <= fitting]
            return sizes[-1]
        if each % self.batch_size or self.batch_size % group:
            raise OptionError(
                f"batch_size must divide the {each} completions that a process has in a step"
                + (" and be even" if group == 2 else "")
                + f", got {self.batch_size}"
            )
        return self.batch_size

    @property
    def sampling(self) -> SamplingSettings:
        """How responses to held-out prompts are sampled, at every check alike."""
        return SamplingSettings(
            responses=2,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            distinct=False,
        )


@dataclass(frozen=True)
class RewardSpec:
    """What a policy is trained for: a bank and how its scores become one reward.

    Attributes:
        bank: The preference models.
        scalarizer: A name in `SCALARIZERS`.
        weights: One per objective of the bank; none means 1/K each.
    """

    bank: PMBank
    scalarizer: str = "linear"
    weights: Mapping[str, float] | None = None

    @property
    def named_weights(self) -> dict[str, float]:
        """The weight of every objective, in the bank's order."""
        names = self.bank.objectives
        given = self.weights or dict.fromkeys(names, 1 / len(names))
        return {name: given[name] for name in names}

    def combine(self) -> Callable[[Tensor], Tensor]:
        """Return the function from scores to rewards, its weights checked."""
        return bind_scalarizer(self.scalarizer, self.bank.objectives, weights=self.weights)


class TrainedPolicy(NamedTuple):
    """A policy's manifest, and what was measured before training and of the kept weights."""

    manifest: PolicyManifest
    before: HeldOut
    after: HeldOut
