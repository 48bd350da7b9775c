"""Analyses of whole models and of theory: likeness of heads, syntax, recall, tuning.

They are functions over models, maps or weights. What a stage can see in one run is a probe
(`regard.probes`); what asks which part of a model did something is a circuit (`regard.circuits`).
"""
