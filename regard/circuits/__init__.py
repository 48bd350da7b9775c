"""Circuits: which heads matter, by patching, paths, edges, lenses, attribution and Shapley values.

A probe is a stage that observes one run; these analyses run a model several times, or train on its
outputs, and answer a question about the whole.
"""
