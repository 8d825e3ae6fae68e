"""Aligning a policy against a bank, and the artifact that comes of it."""
