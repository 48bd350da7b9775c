"""Measure layers and policies: what they cost, and what they keep of a model's quality.

`regard bench mha gqa linear --tasks mqar,copy` trains layers alike; `sweep.carry_out` from Python.
`shrunk_models` draws the quality of a shrunk model against its memory.
"""
