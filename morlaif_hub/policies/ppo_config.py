"""How PPO trains a policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from morlaif_hub.errors import OptionError
from morlaif_hub.models.generation import SamplingSettings

_MAY_BE_0 = ("learning_rate", "kl_coef", "value_coef", "gamma", "lam", "seed")
_AT_MOST_1 = ("gamma", "lam")


@dataclass(frozen=True)
class PPOConfig:
    """Settings of a `PPOTrainer`. A step is a round: sample responses, score them, learn from them.

    Attributes:
        output_dir: Where checkpoints go.
        max_steps: Rounds.
        rollouts: Responses of a round, in all processes; one to each prompt drawn.
        batch_size: Responses of an optimizer step, in all processes.
        micro_batch_size: Responses that a process trains on at once, for less memory and the same
            result; None for its whole share of a batch.
        rollout_batch_size: Responses that a process samples, or runs without gradients, at once.
        epochs: How often a round's responses are trained on.
        learning_rate: Of AdamW with betas (0.9, 0.95), constant.
        max_grad_norm: Longer gradients are shortened to this; None for none.
        kl_coef: Reward that a nat of divergence costs; with a target, what it starts at.
        kl_target: Nats that a response shall diverge, over all its tokens; None for a fixed cost.
        kl_horizon: Responses in which the coefficient changes by about a fifth at most.
        gamma: Discount of rewards, for each token.
        lam: Of generalised advantage estimation: 0 trusts the values, 1 the rewards.
        clip_range: How far from 1 the ratio of a token's probabilities still counts.
        value_clip_range: How far a value may move in a round without being seen as clipped.
        value_coef: Weight of the value loss.
        scale_rewards: Divide rewards by the standard deviation of all so far.
        reward_clip: Largest absolute reward, after scaling, KL apart; None for none.
        max_new_tokens: Limit of a response.
        temperature: Of the policy, in sampling and in the losses.
        stop: Strings that end a response, and are cut off before it is scored.
        reward_weights: One for each reward function; None for 1 each, as in TRL.
        value_per_reward: A value head for each reward function and for the KL, whose advantages are
            added up by weight: Xu et al., ICML 2020 (prediction-guided multi-objective RL).
        save_steps: Rounds between checkpoints, all of which are kept; None for none.
        seed: Of all that is drawn.

    Raises:
        OptionError: If a value is outside what is accepted.
    """

    output_dir: str = "ppo"
    max_steps: int = 100
    rollouts: int = 128
    batch_size: int = 32
    micro_batch_size: int | None = None
    rollout_batch_size: int = 32
    epochs: int = 4
    learning_rate: float = 1e-5
    max_grad_norm: float | None = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = 6.0
    kl_horizon: int = 10_000
    gamma: float = 1.0
    lam: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 1.0
    scale_rewards: bool = True
    reward_clip: float | None = 10.0
    max_new_tokens: int = 128
    temperature: float = 1.0
    stop: Sequence[str] = ()
    reward_weights: Sequence[float] | None = None
    value_per_reward: bool = False
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float):
                continue
            if not (value >= 0 if name in _MAY_BE_0 else value > 0):
                least = "at least" if name in _MAY_BE_0 else "greater than"
                raise OptionError(f"{name} must be {least} 0, got {value}")
            if name in _AT_MOST_1 and value > 1:
                raise OptionError(f"{name} must be at most 1, got {value}")
        if self.rollouts % self.batch_size:
            said = f"got {self.rollouts} and {self.batch_size}"
            raise OptionError(f"rollouts must be a multiple of batch_size, {said}")

    @property
    def sampling(self) -> SamplingSettings:
        """How responses are sampled: from the policy as it is, at its temperature."""
        settings = SamplingSettings(top_p=1.0, stop=tuple(self.stop), distinct=False)
        return replace(settings, max_new_tokens=self.max_new_tokens, temperature=self.temperature)

    @classmethod
    def morlaif(cls, output_dir: str = "ppo") -> "PPOConfig":
        """Return the settings of arXiv:2406.07295; `dataclasses.replace` changes some of them.

        Its 10,000 optimizer steps are 78 rounds of 128 responses, 4 at a time, for 4 epochs.
        """
        paper = cls(output_dir, max_steps=78, batch_size=4, learning_rate=4e-6)
        return replace(paper, max_grad_norm=None)
