"""Weights for a bank's objectives: those that best tell which of two responses is preferred.

A logistic regression of a label, people's choice or a judge's verdict, on the differences of
calibrated scores, A minus B. It has no intercept, so which response is called A does not matter,
and each objective is measured in root mean squares of its differences when it is penalised, so
its scale does not matter either.

Weights are normalised: their absolute values sum to 1, as those of equal weights, 1/K, do. For
`linear`, `max_min` and others only proportions decide which response is better, but `soft_max_min`
and `uncertainty_weighted` have a scale, and so get the one that their defaults are made for. The
`scale` of a fit leads back: scale * (weights . differences) is the log-odds of A being preferred.

Source:
    arXiv:2406.07295 (MORLAIF), which fits its weights so. Intervals: B. Efron, Annals of
    Statistics 7 (1979), 1-26, over prompts. Cross-fitting: M. Stone, Journal of the Royal
    Statistical Society B 36 (1974), 111-147.
"""

from morlaif_hub.weights.comparison import ScalarizerAccuracy, compare_scalarizers
from morlaif_hub.weights.fit import check_enough, fit_weights
from morlaif_hub.weights.inflation import variance_inflation
from morlaif_hub.weights.result import Quality, WeightFit

__all__ = [
    "Quality",
    "ScalarizerAccuracy",
    "WeightFit",
    "check_enough",
    "compare_scalarizers",
    "fit_weights",
    "variance_inflation",
]
