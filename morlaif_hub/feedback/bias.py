"""How much a judge's answers depended on the order in which the responses were shown.

All figures rest on both orders of each pair. Of the pairs, some have the same preferred response in
both (consistent), some another one (flipped), and in the rest one order or both have none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from morlaif_hub.comparisons import Comparison, Side
from morlaif_hub.errors import DataError
from morlaif_hub.figures import rate_points
from morlaif_hub.hub.manifest import BiasReport, RateRecord
from morlaif_hub.judges.base import Verdict
from morlaif_hub.statistics import (
    Estimate,
    FloatArray,
    combine_orders,
    entropy_bits,
    estimate_mean,
    estimate_means,
)

HUMAN_SIDES: dict[Side | None, float] = {"a": 1.0, "b": -1.0, None: 0.0}
"""How `Judged.human_sides` writes what people chose."""


class Judged(NamedTuple):
    """Verdicts as arrays of numbers, so that a report on millions fits in memory.

    Attributes:
        a_first: Probability of A when A was shown first, in [0, 1]; shape (n,).
        a_second: The same when A was shown second; shape (n,).
        prompts: The prompt of each pair, as any label that equal prompts share; shape (n,).
        human_sides: What people chose: 1 for A, -1 for B, 0 where that is unknown; shape (n,).
    """

    a_first: ArrayLike
    a_second: ArrayLike
    prompts: ArrayLike
    human_sides: ArrayLike


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
    judged = Judged(
        [verdict.probability_a_first for verdict in verdicts],
        [verdict.probability_a_second for verdict in verdicts],
        [comparison.prompt_id for comparison in comparisons],
        [HUMAN_SIDES[comparison.human_choice] for comparison in comparisons],
    )
    return bias_of(judged, seed=seed)


def bias_of(judged: Judged, *, seed: int = 0) -> BiasReport:
    """Return what verdicts as arrays say about the judge, as `bias_report` does.

    Raises:
        DataError: If there is nothing to report on.
    """
    first, second = np.asarray(judged.a_first), np.asarray(judged.a_second)
    prompts, sides = np.asarray(judged.prompts), np.asarray(judged.human_sides, dtype=float)
    if not first.size:
        raise DataError("there are no verdicts, so there is no bias to report")
    probabilities = combine_orders(first, second)
    preferences = np.sign(first - 0.5), np.sign(second - 0.5)  # of A, in either order
    agreement = preferences[0] * preferences[1]
    measured = {
        "position_bias": (preferences[0] - preferences[1]) / 4,
        "flip_rate": agreement < 0,
        "consistency": agreement > 0,
        "ties": probabilities == 0.5,
        "entropy": entropy_bits(probabilities),
    }
    columns = np.stack([values.astype(float) for values in measured.values()], axis=1)
    estimates = estimate_means(columns, prompts, seed=seed)
    found = dict(zip(measured, map(_record, estimates), strict=True))
    bias = found["position_bias"]
    low, high = bias.interval
    return BiasReport(
        position_bias=bias,
        flip_rate=found["flip_rate"],
        tie_rate=found["ties"].value,
        mean_entropy=found["entropy"].value,
        human_agreement=_human_agreement(probabilities, prompts, sides, seed=seed),
        first_share=replace(bias, value=0.5 + bias.value, interval=(0.5 + low, 0.5 + high)),
        consistency=found["consistency"],
        tie_interval=found["ties"].interval,
        entropy_interval=found["entropy"].interval,
    )


def bias_figure(report: BiasReport) -> Figure:
    """Draw the rates of a report with their intervals; what was not measured is left out."""
    named = {
        "prefers what is shown first": report.first_share,
        "same choice in both orders": report.consistency,
        "choice changes with the order": report.flip_rate,
        "ties": _rate(report.tie_rate, report.tie_interval),
        "entropy, in bits": _rate(report.mean_entropy, report.entropy_interval),
        "agrees with people": report.human_agreement,
    }
    rates = {name: rate for name, rate in named.items() if rate is not None}
    return rate_points(
        list(rates), [rate.value for rate in rates.values()], [r.interval for r in rates.values()]
    )


def _rate(value: float, interval: tuple[float, float] | None) -> RateRecord | None:
    return None if interval is None else RateRecord(value=value, interval=interval, n=0)


def _human_agreement(
    probabilities: FloatArray,
    prompts: NDArray[np.generic],
    sides: FloatArray,
    *,
    seed: int,
) -> RateRecord | None:
    known = sides != 0
    if not known.any():
        return None
    # 1 where the judge prefers what people chose, 0 where the other, 0.5 for a tie.
    agreements = 0.5 + 0.5 * np.sign(probabilities - 0.5) * sides
    return _record(estimate_mean(agreements[known], prompts[known], seed=seed))


def _record(estimate: Estimate) -> RateRecord:
    low, high = estimate.interval
    return RateRecord(value=estimate.value, interval=(low, high), n=estimate.n)
