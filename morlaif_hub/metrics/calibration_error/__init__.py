"""The metric `calibration_error`: its script for `evaluate`, and its card."""
