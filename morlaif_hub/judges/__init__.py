"""Judges: what answers which of two responses is better on a principle."""
