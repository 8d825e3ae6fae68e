"""The metric `pairwise_accuracy`: its script for `evaluate`, and its card."""
