"""The metric `position_bias`: its script for `evaluate`, and its card."""
