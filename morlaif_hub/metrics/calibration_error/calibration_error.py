"""Expected calibration error of probabilities for pairs, for `evaluate.load`."""

# One import a line: evaluate reads them with a regular expression, and `import a, b` breaks it.
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from morlaif_hub.statistics import calibration_error

_INPUTS = """
Args:
    predictions: Predicted probability that response A is better, in [0, 1].
    references: 1 where A is better, 0 where B is, or any probability between.
    groups: The prompt of each pair, which the interval resamples; given to `compute` alone.
    seed: Of the resampling.

Returns:
    calibration_error: In [0, 1], less what chance adds.
    interval: Low and high end of 95 %.
    n: Number of pairs.
"""
_CITATION = """
@inproceedings{kumar2019verified,
  title = {Verified Uncertainty Calibration},
  author = {Kumar, Ananya and Liang, Percy S. and Ma, Tengyu},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019},
  note = {arXiv:1909.10155},
}
"""


class CalibrationError(evaluate.Metric):
    """`morlaif_hub.statistics.calibration_error` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="How far probabilities for pairs lie from what happens, on average.",
            citation=_CITATION,
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
        value, interval, n = calibration_error(predictions, references, groups, seed=seed)
        return {"calibration_error": value, "interval": list(interval), "n": n}
