"""Intervals, accuracies, calibration and small fits: pure functions on arrays.

Probabilities are those of the first response of a pair, "A", being preferred, so they lie in
[0, 1] and one half is a tie. Nothing here draws on global randomness: what resamples takes a seed.
"""

from morlaif_hub.statistics.arrays import FloatArray
from morlaif_hub.statistics.calibration import (
    calibration_bins,
    calibration_error,
    cross_fitted_temperatures,
    expected_calibration_error,
)
from morlaif_hub.statistics.fits import fit_logistic, fit_temperature
from morlaif_hub.statistics.intervals import (
    Z_95,
    Estimate,
    Interval,
    ValidationVerdict,
    bootstrap_interval,
    estimate_mean,
    estimate_means,
    validation_verdict,
    wilson_interval,
)
from morlaif_hub.statistics.moments import RunningMoments
from morlaif_hub.statistics.pairs import (
    SMALLEST_PROBABILITY,
    combine_orders,
    correlation,
    entropy_bits,
    estimate_accuracy,
    log_odds,
    pairwise_accuracy,
    position_bias,
    sigmoid,
)

__all__ = [
    "SMALLEST_PROBABILITY",
    "Z_95",
    "Estimate",
    "FloatArray",
    "Interval",
    "RunningMoments",
    "ValidationVerdict",
    "bootstrap_interval",
    "calibration_bins",
    "calibration_error",
    "combine_orders",
    "correlation",
    "cross_fitted_temperatures",
    "entropy_bits",
    "estimate_accuracy",
    "estimate_mean",
    "estimate_means",
    "expected_calibration_error",
    "fit_logistic",
    "fit_temperature",
    "log_odds",
    "pairwise_accuracy",
    "position_bias",
    "sigmoid",
    "validation_verdict",
    "wilson_interval",
]
