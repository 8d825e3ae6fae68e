"""A judge's position bias, for `evaluate.load`."""

# One import a line: evaluate reads them with a regular expression, and `import a, b` breaks it.
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from morlaif_hub.statistics import position_bias

_INPUTS = """
Args:
    first: Probability that response A is better, when A was shown first.
    second: The same, when B was shown first. One half is a tie.
    groups: The prompt of each pair, which the interval resamples; given to `compute` alone.
    seed: Of the resampling.

Returns:
    position_bias: P(the response shown first is preferred) - 0.5, in [-0.5, 0.5].
    interval: Low and high end of 95 %.
    n: Number of pairs.
"""


class PositionBias(evaluate.Metric):
    """`morlaif_hub.statistics.position_bias` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="How much more often than half of the time a judge prefers what it sees "
            "first.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"first": number, "second": number}),
        )

    def _compute(
        self,
        first: Sequence[float],
        second: Sequence[float],
        groups: Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        value, interval, n = position_bias(first, second, groups, seed=seed)
        return {"position_bias": value, "interval": list(interval), "n": n}
