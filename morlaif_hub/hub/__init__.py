"""Artifacts: folders with a manifest and a card, moved to and from the Hub. Knows no model."""
