"""Measurements: each figure with its circumstances, each target as a ratio within one run."""
