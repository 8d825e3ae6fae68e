"""Records of judges and their verdicts: who judged, how well, and how much the order mattered.

What was added after the first artifacts were published is null where it was not measured yet.
"""

from typing import Annotated, Literal

from pydantic import Field

from morlaif_hub.hub.records import (
    BaseIdentity,
    Bounds,
    Count,
    Finite,
    Probability,
    RateRecord,
    Sha256,
    Verdict,
    plain_record,
)


@plain_record
class PartRecord:
    """Accuracy on one part of the probes: the better side longer, shorter or equally long."""

    part: Literal["longer", "shorter", "equal"]
    accuracy: Probability
    n: Count


@plain_record
class ValidationRecord:
    """Accuracy on a principle's probes and what follows from it.

    Attributes:
        verdict: `fit` if the Wilson 95 % interval lies above 0.5, `wrong way` if below, else
            `unproven`.
        accuracy: Share of probes whose better side is preferred; ties count one half.
        interval: Wilson 95 % interval of the accuracy.
        n: Number of probes.
        parts: The accuracy by whether the better side is longer, shorter or equally long.
        first_share: Share of all answers, over both orders, that prefer the response shown first;
            null for what has no order.
        length_correlation: Correlation, in [-1, 1], of the preference with the difference in
            words; null where it is undefined.
    """

    verdict: Verdict
    accuracy: Probability
    interval: Bounds
    n: Count
    parts: tuple[PartRecord, ...]
    first_share: Probability | None
    length_correlation: Finite | None


@plain_record
class ChoiceRecord:
    """How often a judge preferred what people had chosen, on a sample asked before labelling.

    People chose for all sorts of reasons, and a judge of one principle minds that one alone, so it
    may be right about it and disagree with them.

    Attributes:
        verdict: As for the probes, but `wrong way` is a warning here and stops nothing.
        accuracy: Share of the pairs on which the judge prefers the chosen response; ties count one
            half.
        interval: Wilson 95 % interval of the accuracy.
        n: Number of pairs, each of another prompt.
    """

    verdict: Verdict
    accuracy: Probability
    interval: Bounds
    n: Annotated[int, Field(ge=1)]


@plain_record
class JudgeRecord:
    """Who labelled: the judge's spec, the base of a local one and the hash of its prompts.

    `choices` is how it did on pairs of the source whose better side people had chosen; null where
    none were known, or the judge was not tried on them.
    """

    spec: str
    base: BaseIdentity | None
    prompt_sha256: Sha256
    validated: bool
    validation: ValidationRecord | None
    choices: ChoiceRecord | None = None


@plain_record
class BiasReport:
    """How much a judge's answers depended on the order of the responses.

    Of the pairs, `consistency` have the same preferred response in both orders, `flip_rate` another
    one; in the rest, one order or both have none. Intervals resample prompts.

    Attributes:
        position_bias: P(the response shown first is preferred) - 0.5, in [-0.5, 0.5].
        flip_rate: Share of pairs whose preferred response changes with the order.
        tie_rate: Share of pairs with a debiased probability of exactly one half.
        mean_entropy: Mean entropy of the debiased probabilities, in bits, in [0, 1].
        human_agreement: Share of pairs, of those with a human choice, on which the judge agrees;
            null if there are none.
        first_share: Share of the answers, two for each pair, that prefer the response shown first;
            one with no preference counts one half.
        consistency: Share of pairs whose preferred response is the same in both orders.
        tie_interval: Of the tie rate.
        entropy_interval: Of the mean entropy.
    """

    position_bias: RateRecord
    flip_rate: RateRecord
    tie_rate: Probability
    mean_entropy: Probability
    human_agreement: RateRecord | None
    first_share: RateRecord | None = None
    consistency: RateRecord | None = None
    tie_interval: Bounds | None = None
    entropy_interval: Bounds | None = None


@plain_record
class UnansweredRecord:
    """How many pairs are left out of a set since their question got no verdict, and why."""

    reason: str
    n: Annotated[int, Field(ge=1)]
