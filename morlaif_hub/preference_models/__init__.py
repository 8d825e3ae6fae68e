"""Training, calibrating and measuring preference models."""
