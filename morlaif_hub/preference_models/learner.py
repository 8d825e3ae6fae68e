"""One preference model in training: its weights, their optimiser, and its best checkpoint."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from morlaif_hub.errors import TrainingError
from morlaif_hub.preference_models.losses import (
    Check,
    Selection,
    Trained,
    check_scores,
    pair_losses,
)
from morlaif_hub.preference_models.saved_state import State, packed, put_back
from morlaif_hub.preference_models.settings import GradientSettings
from morlaif_hub.preference_models.tokens import Array, TokenPairs

LARGEST_GRADIENT = 1.0
"""The norm to which a step's gradient is cut, as transformers' Trainer does by default."""


class Work(NamedTuple):
    """What one preference model learns from.

    Attributes:
        train: Pairs to learn from.
        validation: Pairs of other prompts, which decide what is kept; may be none.
    """

    train: TokenPairs
    validation: TokenPairs


class Learner:
    """One adapter and all that its training needs.

    Args:
        principle: For errors.
        slot: The adapter's name in the model.
        parameters: That are trained, by name.
        work: What it learns from.
        settings: How.

    Attributes:
        failure: Why training was given up; None if it was not.
        going: Whether there is more to learn.
    """

    def __init__(
        self,
        principle: str,
        slot: str,
        parameters: Mapping[str, nn.Parameter],
        *,
        work: Work,
        settings: GradientSettings,
    ) -> None:
        self.principle, self.slot, self.work = principle, slot, work
        self.failure: str | None = None
        self.going = True
        self._settings = settings
        self._parameters = dict(parameters)
        self._labels = torch.tensor(work.train.probabilities, dtype=torch.float32)
        self._selection = Selection()
        self._best = self._copied()
        # As TRL's RewardTrainer has it by default.
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=settings.rate, weight_decay=0.0
        )

    def learn(
        self, scores: Sequence[tuple[Tensor, Tensor]], pairs: Sequence[int], batch: Sequence[int]
    ) -> None:
        """Add the gradient of some pairs of a batch to what the next step takes.

        Args:
            scores: Of the first and second response of each pair, with their graphs, shape ().
            pairs: Their places in the training set.
            batch: The places of all pairs of the batch; its loss is their mean.
        """
        differences = torch.stack([first - second for first, second in scores])
        losses = pair_losses(
            differences,
            self._labels[list(pairs)].to(differences.device),
            loss=self._settings.loss,
            label_smoothing=self._settings.label_smoothing,
        )
        loss = losses.sum() / len(batch)
        if not torch.isfinite(loss):
            self._give_up(f"the loss is {loss.item()}", batch)
            return
        parameters = list(self._parameters.values())
        # All or nothing: if memory runs out on the way, no gradient was added.
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                known = parameter.grad
                parameter.grad = gradient if known is None else known + gradient

    def step(self, batch: Sequence[int], rate: float) -> None:
        """Change the weights by the gradient of a batch.

        Args:
            batch: The places of its pairs in the training set, at least one.
            rate: Share of the learning rate that is left.
        """
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), LARGEST_GRADIENT)
        if not torch.isfinite(norm):
            self._give_up(f"the gradient is {norm.item()}", batch)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate * rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def check(self, differences: Array, step: int) -> Check | None:
        """Take a check on the validation pairs into account; return what it found, if anything.

        Args:
            differences: Scores of first minus those of second responses, shape (pairs,).
            step: How many steps were done.
        """
        try:
            found: Check = check_scores(differences, self.work.validation.probabilities)
        except TrainingError as error:
            self._end(f"at step {step}: {error}")
            return None
        if self._selection.add(found, step):
            self._best = self._copied()
        self.going = self._selection.without_better < self._settings.patience
        return found

    def finish(self, steps: int) -> Trained | TrainingError:
        """Put the best weights in place; return what training gave.

        Args:
            steps: How many there were.
        """
        if self.failure is not None:
            self._put_back()
            return TrainingError(f"{self.principle}: {self.failure}")
        if not len(self.work.validation):
            return Trained(None, None, steps, "trained")
        self._put_back()
        return self._selection.result()

    def state(self) -> State:
        """Return all that is needed to go on."""
        tensors = packed(self._parameters, self._optimizer)
        tensors |= {f"best/{name}": t for name, t in self._best.items()}
        selection = self._selection
        facts = {
            "failure": self.failure,
            "going": self.going,
            "start": selection.start,
            "trained": selection.trained,
            "trained_at": selection.trained_at,
            "without_better": selection.without_better,
        }
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Go on from a state."""
        facts = state.facts
        self.failure, self.going = facts["failure"], facts["going"]
        start, trained = (facts[name] and Check(*facts[name]) for name in ("start", "trained"))
        self._selection = Selection(start, trained, facts["trained_at"], facts["without_better"])
        put_back(state.tensors, self._parameters, self._optimizer)
        for name, best in self._best.items():
            best.copy_(state.tensors[f"best/{name}"])

    def _give_up(self, why: str, batch: Sequence[int]) -> None:
        pairs = ", ".join(map(str, batch))
        self._end(
            f"{why} in the batch of training pairs {pairs}; lower the learning rate, or train in "
            "float32"
        )

    def _end(self, failure: str) -> None:
        self.failure, self.going = failure, False
        self._optimizer.zero_grad(set_to_none=True)

    def _copied(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    def _put_back(self) -> None:
        for name, tensor in self._best.items():
            self._parameters[name].data.copy_(tensor)
