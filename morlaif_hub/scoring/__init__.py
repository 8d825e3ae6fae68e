"""Scoring sets of any size: by several processes, part by part, into files that stay."""
