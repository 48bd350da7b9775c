"""Circuits: which heads did it, by patching, paths, edges, lenses, attribution and Shapley values.

A probe is a stage that looks at one run; what stands here runs a model several times, or trains
something on what it gave, and answers a question about the whole.
"""
