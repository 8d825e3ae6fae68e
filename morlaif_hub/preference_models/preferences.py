"""Labelled comparisons of one principle: what a preference model learns from."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from morlaif_hub.comparisons import Comparison, split_by_prompt
from morlaif_hub.errors import TrainingError
from morlaif_hub.feedback.dataset import FeedbackDataset, held_out_prompts
from morlaif_hub.hub.manifest import DatasetReference, JudgeRecord
from morlaif_hub.principles import Principle

Array = NDArray[np.float64]
FEWEST_PAIRS = 20


@dataclass(frozen=True)
class Preferences:
    """Labelled comparisons of one principle.

    Attributes:
        principle: What the labels are about.
        comparisons: The pairs.
        probabilities: Probability that response A is better, shape (pairs,).
        test: Which pairs are held out; all pairs of a prompt are on one side. Shape (pairs,).
        dataset: Where the labels are kept, by hash.
        judge: Who labelled; None for people.
        license: SPDX id for what is made of them.
    """

    principle: Principle
    comparisons: tuple[Comparison, ...]
    probabilities: Array
    test: NDArray[np.bool_]
    dataset: DatasetReference
    judge: JudgeRecord | None
    license: str = "apache-2.0"

    @cached_property
    def held_out(self) -> "LabelledPairs":
        """The test pairs, ties included."""
        return self._rows(self.test)

    @cached_property
    def training(self) -> "LabelledPairs":
        """The training pairs, ties included: that two responses are equally good tells as well."""
        return self._rows(~self.test)

    @cached_property
    def decided(self) -> "LabelledPairs":
        """The training pairs that are no ties."""
        return self.training.decided()

    def check_enough(self) -> None:
        """Check that there is something to learn from and to measure on.

        Raises:
            TrainingError: If there is not; the message says how many pairs there are. Also if the
                same side is better in every pair.
        """
        if len(self.decided) < FEWEST_PAIRS or not len(self.held_out):
            raise TrainingError(
                f"{self.principle.name}: {len(self.decided)} training pairs that are no ties and "
                f"{len(self.held_out)} held-out pairs are too few; give more labelled pairs: "
                f"{FEWEST_PAIRS} and 1 at least, and to learn something some hundred, of at least "
                "24 prompts"
            )
        sides = set(np.sign(self.probabilities - 0.5)) - {0.0}
        if len(sides) == 1:
            side = "A" if sides == {1.0} else "B"
            raise TrainingError(
                f"{self.principle.name}: response {side} is the better one in all "
                f"{len(self.probabilities)} pairs, so the labels may be about the place alone; if "
                "the better response stands in one column, call the columns chosen and rejected"
            )

    def _rows(self, chosen: NDArray[np.bool_]) -> "LabelledPairs":
        return LabelledPairs(
            tuple(c for c, kept in zip(self.comparisons, chosen, strict=True) if kept),
            self.probabilities[chosen],
        )


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs with the probability that response A is better, shape (pairs,)."""

    comparisons: tuple[Comparison, ...]
    probabilities: Array

    def __len__(self) -> int:
        return len(self.comparisons)

    @property
    def prompts(self) -> list[str]:
        """The id of each pair's prompt."""
        return [c.prompt_id for c in self.comparisons]

    def split(self, fraction: float, seed: int) -> tuple["LabelledPairs", "LabelledPairs"]:
        """Return two parts with no prompt in common, the second with a fraction of the prompts."""
        if fraction == 0:
            return self, self._where(np.zeros(len(self), bool))
        apart = split_by_prompt(self.prompts, test_fraction=fraction, seed=seed)
        second = np.array([prompt in apart for prompt in self.prompts])
        return self._where(~second), self._where(second)

    def sample(self, count: int, seed: int) -> "LabelledPairs":
        """Return about so many of the pairs, of whole prompts drawn at random; all if no more."""
        if len(self) <= count:
            return self
        _, drawn = self.split(count / len(self), seed)
        return drawn

    def joined(self, others: "LabelledPairs") -> "LabelledPairs":
        """Return these pairs and others."""
        return LabelledPairs(
            self.comparisons + others.comparisons,
            np.concatenate([self.probabilities, others.probabilities]),
        )

    def decided(self) -> "LabelledPairs":
        """Return the pairs that are no ties."""
        return self._where(self.probabilities != 0.5)

    def _where(self, chosen: NDArray[np.bool_]) -> "LabelledPairs":
        kept = tuple(c for c, wanted in zip(self.comparisons, chosen, strict=True) if wanted)
        return LabelledPairs(kept, self.probabilities[chosen])


def human_preferences(
    principle: Principle,
    comparisons: Iterable[Comparison],
    *,
    dataset: DatasetReference,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Preferences:
    """Return people's choices as labelled comparisons, split by prompt.

    The split that the comparisons come with is kept where all of them have one; a prompt that it
    has on both sides is trained on.

    Raises:
        TrainingError: If no comparison has a human choice.
    """
    labelled = tuple(c for c in comparisons if c.human_choice is not None)
    if not labelled:
        raise TrainingError(
            "no pair has a human choice; give chosen/rejected pairs or a human_choice column"
        )
    held_out = held_out_prompts(labelled, test_fraction=test_fraction, seed=seed)
    return Preferences(
        principle=principle,
        comparisons=labelled,
        probabilities=np.array([float(c.human_choice == "a") for c in labelled]),
        test=np.array([c.prompt_id in held_out for c in labelled]),
        dataset=dataset,
        judge=None,
    )


def feedback_preferences(principle: Principle, feedback: FeedbackDataset) -> Preferences:
    """Return a feedback dataset's verdicts as labelled comparisons, in its own split.

    Args:
        principle: Of the same name; brings the probes.
        feedback: Its verdicts.

    Raises:
        TrainingError: If the dataset is about another principle, or was collected in one order
            only, since its labels then contain the judge's position bias.
    """
    recorded = feedback.manifest.principle
    if (recorded.name, recorded.sha256) != (principle.name, principle.sha256()):
        raise TrainingError(
            f"the feedback is about {recorded.name!r} ({recorded.criterion!r}), not about "
            f"{principle.name!r} ({principle.criterion!r}); collect it again"
        )
    if feedback.manifest.orders != 2:
        raise TrainingError(
            f"the feedback on {principle.name!r} was collected in one order only, so the judge's "
            "position bias is part of its labels; collect it in both orders"
        )
    train, test = feedback.splits
    return Preferences(
        principle=principle,
        comparisons=tuple(item.comparison for item in (*train, *test)),
        probabilities=np.array([item.verdict.probability_a for item in (*train, *test)]),
        test=np.array([False] * len(train) + [True] * len(test)),
        dataset=feedback.reference,
        judge=feedback.manifest.judge,
        license=feedback.manifest.license,
    )
