"""Analyses of whole models and of theory: similarity of heads, syntax, recall, tuning.

They are functions over models, maps or weights. Stages that observe one run are probes
(`regard.probes`); analyses of which part of a model did something are in `regard.circuits`.
"""
