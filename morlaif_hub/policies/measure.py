"""What a policy does on held-out prompts: rewards, divergence from its reference, length."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morlaif_hub.comparisons import Message
from morlaif_hub.errors import OptionError
from morlaif_hub.hub.manifest import PolicyCheckpoint
from morlaif_hub.models.formats import encode, prompt_text
from morlaif_hub.models.generation import SamplingSettings, sample_responses
from morlaif_hub.models.language_model import LanguageModel
from morlaif_hub.models.likelihood import (
    LOGIT_ROWS,
    Branches,
    in_batches,
    log_probabilities,
    predicting_states,
)
from morlaif_hub.rewards import Scorer
from morlaif_hub.statistics import Interval, bootstrap_interval

Array = NDArray[np.float64]
Combine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeldOut:
    """One row per response to a held-out prompt.

    Attributes:
        scores: Calibrated, shape (responses, objectives).
        rewards: Scalarized, shape (responses,).
        prompts: Index of each response's prompt, shape (responses,).
        words: Length of each response, shape (responses,).
        finished: Whether it ended by itself, shape (responses,).
        kl: Mean per token to the reference policy, in nats, >= 0.
        texts: The responses.
    """

    scores: Array
    rewards: Array
    prompts: NDArray[np.intp]
    words: Array
    finished: Array
    kl: float
    texts: tuple[str, ...]

    @property
    def distinct(self) -> float:
        """The share of different texts among the responses, above 0 and at most 1."""
        return len(set(self.texts)) / len(self.texts)

    def checkpoint(
        self, step: int, objectives: Sequence[str], *, judged: float | None = None
    ) -> PolicyCheckpoint:
        """Return the means over prompts, each prompt's mean counting once, for a manifest.

        Args:
            step: Of training.
            objectives: Names of the columns of `scores`.
            judged: The share of responses that a judge prefers to those before training.
        """
        means = self._by_prompt(self.scores).mean(axis=0).tolist()
        return PolicyCheckpoint(
            step=step,
            reward=float(self._by_prompt(self.rewards).mean()),
            objectives=dict(zip(objectives, means, strict=True)),
            kl=self.kl,
            words=float(self._by_prompt(self.words).mean()),
            finished=float(self._by_prompt(self.finished).mean()),
            distinct=self.distinct,
            judged=judged,
        )

    def change_from(self, before: "HeldOut") -> Interval:
        """Return the 95 % interval of the change in the checkpoints' reward since `before`.

        Raises:
            OptionError: If they were not measured on the same prompts.
        """
        return self._change(before, self.rewards, before.rewards)

    def changes_from(self, before: "HeldOut", objectives: Sequence[str]) -> dict[str, Interval]:
        """Return the 95 % interval of the change of every objective's score since `before`.

        Raises:
            OptionError: If they were not measured on the same prompts.
        """
        columns = zip(objectives, self.scores.T, before.scores.T, strict=True)
        return {name: self._change(before, now, then) for name, now, then in columns}

    def plain(self) -> dict[str, Any]:
        """Return plain values, from which `from_plain` makes the same again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "HeldOut":
        """Return what `plain` was made of."""
        arrays = {n: np.array(plain[n]) for n in ("scores", "rewards", "words", "finished")}
        prompts = np.array(plain["prompts"], dtype=np.intp)
        return cls(**arrays, prompts=prompts, kl=plain["kl"], texts=tuple(plain["texts"]))

    def _change(self, before: "HeldOut", now: Array, then: Array) -> Interval:
        prompts = np.unique(self.prompts)
        if not np.array_equal(prompts, np.unique(before.prompts)):
            raise OptionError(
                f"a change needs the same prompts before and after, got {len(prompts)} after and "
                f"{len(np.unique(before.prompts))} before, not all of them the same"
            )
        return bootstrap_interval(self._by_prompt(now) - before._by_prompt(then), prompts)

    def _by_prompt(self, values: Array) -> Array:
        """Return the mean of each prompt's rows, in the order of the prompts' indices."""
        rows = [values[self.prompts == prompt].mean(axis=0) for prompt in np.unique(self.prompts)]
        return np.array(rows)


def measure(
    policy: LanguageModel,
    prompts: Sequence[Sequence[Message]],
    *,
    bank: Scorer,
    combine: Combine,
    sampling: SamplingSettings,
    reference: Callable[[], AbstractContextManager[Any]] | None = None,
) -> HeldOut:
    """Sample responses to held-out prompts and measure them.

    Every sample counts, equal and empty ones too: a policy that repeats itself or falls silent is
    measured as it is.

    Args:
        policy: What answers.
        prompts: Message lists that training did not see.
        bank: Scores the responses.
        combine: From `bind_scalarizer`.
        sampling: The same for every policy that is to be compared; `distinct` is taken for False.
        reference: As for `mean_kl`; None for the reference itself, whose KL is 0.
    """
    sampled = sample_responses(policy, prompts, replace(sampling, distinct=False))
    flat = [(i, response) for i, found in enumerate(sampled) for response in found]
    texts = [response.text for _, response in flat]
    scores = bank.score([list(prompts[i]) for i, _ in flat], texts)
    pairs = [(prompts[i], response.ids) for i, response in flat]
    return HeldOut(
        scores=scores.double().numpy(),
        rewards=combine(scores).double().numpy(),
        prompts=np.array([i for i, _ in flat]),
        words=np.array([float(len(text.split())) for text in texts]),
        finished=np.array([float(response.finished) for _, response in flat]),
        kl=0.0 if reference is None else mean_kl(policy, pairs, reference),
        texts=tuple(texts),
    )


@torch.no_grad()
def mean_kl(
    policy: LanguageModel,
    pairs: Sequence[tuple[Sequence[Message], Sequence[int]]],
    reference: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Return the mean, over response tokens, of KL(policy || reference), in nats.

    At every token the divergence is summed over the whole vocabulary rather than estimated from
    the sampled token, which is exact there and never negative.

    Args:
        policy: The model that answered, and what its prompts are encoded with.
        pairs: Prompts and the token ids that were sampled, the end of the turn among them:
            whether to stop is one of the policy's choices.
        reference: A context in which the policy's model is the reference, or which gives another
            `LanguageModel` that is.
    """
    by_prompt: dict[str, Branches] = {}
    for prompt, response in pairs:
        text = prompt_text(policy.tokenizer, prompt)
        if text not in by_prompt:
            by_prompt[text] = Branches(encode(policy.tokenizer, text), [])
        if response:
            by_prompt[text].continuations.append(list(response))
    branches = [b for b in by_prompt.values() if b.continuations]
    total = tokens = 0.0
    for batch in in_batches(branches):
        chosen = [branches[i] for i in batch]
        now = predicting_states(policy, chosen)
        with reference() as given:
            other = given if isinstance(given, LanguageModel) else policy
            then = predicting_states(other, chosen)
        for states, old in zip(now.split(LOGIT_ROWS), then.split(LOGIT_ROWS), strict=True):
            current = log_probabilities(policy, states)
            with reference():
                before = log_probabilities(other, old)
            total += float((current.exp() * (current - before)).sum())
        tokens += len(now)
    return total / tokens if tokens else 0.0
