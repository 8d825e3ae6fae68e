"""How much a judge's answers depended on the order in which the responses were shown."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from morlaif_hub.comparisons import Comparison
from morlaif_hub.errors import DataError
from morlaif_hub.hub.manifest import BiasReport, RateRecord
from morlaif_hub.judges.base import Verdict
from morlaif_hub.statistics import Estimate, entropy_bits, estimate_mean, position_bias


def bias_report(
    comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], *, seed: int = 0
) -> BiasReport:
    """Return what the verdicts on some comparisons say about the judge.

    Args:
        comparisons: What was judged; at least one.
        verdicts: The verdict on each.
        seed: Of the intervals, which resample prompts.

    Raises:
        DataError: If there is nothing to report on.
    """
    if not verdicts:
        raise DataError("there are no verdicts, so there is no bias to report")
    prompts = [comparison.prompt_id for comparison in comparisons]
    agreements = [
        (prompt, _agreement(comparison, verdict))
        for prompt, comparison, verdict in zip(prompts, comparisons, verdicts, strict=True)
        if comparison.human_choice is not None
    ]
    bias = position_bias(
        [v.probability_a_first for v in verdicts],
        [v.probability_a_second for v in verdicts],
        prompts,
        seed=seed,
    )
    human = None
    if agreements:
        human = _rate([a for _, a in agreements], [prompt for prompt, _ in agreements], seed=seed)
    return BiasReport(
        position_bias=_record(bias),
        flip_rate=_rate([float(v.flipped) for v in verdicts], prompts, seed=seed),
        tie_rate=float(np.mean([v.tie for v in verdicts])),
        mean_entropy=float(np.mean(entropy_bits([v.probability_a for v in verdicts]))),
        human_agreement=human,
    )


def _agreement(comparison: Comparison, verdict: Verdict) -> float:
    """Return 1 if the judge prefers what people chose, 0 if the other, 0.5 for a tie."""
    towards_a = float(np.sign(verdict.probability_a - 0.5))
    return 0.5 + 0.5 * (towards_a if comparison.human_choice == "a" else -towards_a)


def _rate(values: ArrayLike, prompts: Sequence[str], *, seed: int) -> RateRecord:
    return _record(estimate_mean(values, prompts, seed=seed))


def _record(estimate: Estimate) -> RateRecord:
    low, high = estimate.interval
    return RateRecord(value=estimate.value, interval=(low, high), n=estimate.n)
