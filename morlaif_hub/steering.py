"""Steering a policy when it answers, with weights chosen then: no training.

Source:
    arXiv:2112.09332 (WebGPT, section 3.2), best-of-n sampling against a reward model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from morlaif_hub.comparisons import Message, prompt_messages
from morlaif_hub.errors import ScoreError
from morlaif_hub.models.generation import SamplingSettings, sample_responses
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.rewards import Scorer, bind_scalarizer


class Candidate(NamedTuple):
    """A sampled response with what each preference model and the scalarizer make of it.

    Attributes:
        text: The response.
        finished: Whether it ended by itself rather than at the token limit.
        scores: Calibrated score by objective; higher is better on its principle.
        reward: The scalarized score.
    """

    text: str
    finished: bool
    scores: dict[str, float]
    reward: float


@dataclass(frozen=True)
class Steered:
    """The candidates for one prompt, the best first, and what they were ranked by."""

    prompt: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    scalarizer: str
    weights: dict[str, float]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest reward."""
        return self.candidates[0]

    def with_weights(
        self,
        weights: Mapping[str, float] | None,
        *,
        scalarizer: str | None = None,
        options: Mapping[str, float] | None = None,
    ) -> "Steered":
        """Return the same candidates ranked by other weights; nothing is sampled or scored.

        Args:
            weights: One per objective, by name; none means 1/K each.
            scalarizer: A name in `SCALARIZERS`; None keeps the present one.
            options: The scalarizer's own, such as `temperature`.
        """
        objectives = tuple(self.best.scores)
        scores = torch.tensor([[c.scores[name] for name in objectives] for c in self.candidates])
        chosen = scalarizer or self.scalarizer
        combine = bind_scalarizer(chosen, objectives, weights=weights, options=options)
        rewards = combine(scores).tolist()
        again = [c._replace(reward=r) for c, r in zip(self.candidates, rewards, strict=True)]
        return replace(
            self,
            candidates=_ranked(again),
            scalarizer=chosen,
            weights=_named(weights, objectives),
        )


def best_of_n(
    prompt: str | Sequence[Message],
    *,
    bank: Scorer,
    policy: LanguageModel | None = None,
    n: int = 8,
    weights: Mapping[str, float] | None = None,
    scalarizer: str = "linear",
    sampling: SamplingSettings | None = None,
    **options: float,
) -> Steered:
    """Sample n responses and rank them by the bank's scalarized score.

    Args:
        prompt: A string or a message list.
        bank: Scores the candidates, in one pass.
        policy: What samples; None for the embedded model.
        n: Number of different candidates; fewer come back if the policy repeats itself.
        weights: One per objective, by name; none means 1/K each.
        scalarizer: A name in `SCALARIZERS`.
        sampling: Temperature, length and so on; its `responses` is replaced by n.
        options: The scalarizer's own, such as `temperature`.

    Returns:
        All candidates with their scores, the best first.

    Raises:
        ObjectiveMismatchError: If `weights` names other objectives than the bank.
        ScoreError: If a score is not finite, or the policy gave nothing but empty responses.
    """
    bind_scalarizer(scalarizer, bank.objectives, weights=weights, options=options)
    messages = prompt_messages(prompt)
    settings = replace(sampling or SamplingSettings(), responses=n)
    (sampled,) = sample_responses(policy or LanguageModel.load(), [messages], settings)
    if not sampled:
        raise ScoreError("the policy gave nothing but empty responses; there is nothing to choose")
    scores = bank.score([list(messages)] * len(sampled), [r.text for r in sampled])
    candidates = [
        Candidate(r.text, r.finished, named, 0.0)
        for r, named in zip(sampled, _by_name(scores, bank.objectives), strict=True)
    ]
    unranked = Steered(messages, tuple(candidates), scalarizer, {})
    return unranked.with_weights(weights, options=options)


def _by_name(scores: Tensor, objectives: Sequence[str]) -> list[dict[str, float]]:
    return [dict(zip(objectives, row, strict=True)) for row in scores.tolist()]


def _ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda c: c.reward, reverse=True))


def _named(weights: Mapping[str, float] | None, objectives: Sequence[str]) -> dict[str, float]:
    return dict(weights) if weights is not None else dict.fromkeys(objectives, 1 / len(objectives))
