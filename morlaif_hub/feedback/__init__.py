"""Feedback: collecting a judge's verdicts, keeping them, and what they look like as a data set."""
