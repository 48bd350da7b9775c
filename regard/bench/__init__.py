"""Measure what methods cost and what they keep of a model's quality, side by side."""
