"""Pairwise accuracy with its interval, for `evaluate.load`."""

# One import a line: evaluate reads them with a regular expression, and `import a, b` breaks it.
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from morlaif_hub.statistics import estimate_accuracy

_INPUTS = """
Args:
    predictions: Score of response A minus score of response B; a tie counts one half.
    references: Probability that A is better, in [0, 1].
    groups: The prompt of each pair, which the interval resamples; given to `compute` alone.
    seed: Of the resampling.

Returns:
    pairwise_accuracy: In [0, 1].
    interval: Low and high end of 95 %.
    n: Number of pairs.
"""


class PairwiseAccuracy(evaluate.Metric):
    """`morlaif_hub.statistics.estimate_accuracy` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="The share of pairs in which the better response has the higher score.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[float],
        groups: Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        value, interval, n = estimate_accuracy(predictions, references, groups, seed=seed)
        return {"pairwise_accuracy": value, "interval": list(interval), "n": n}
