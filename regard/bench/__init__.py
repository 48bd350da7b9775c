"""Measure layers: same backbone, same budget, same data in the same order.

`regard bench mha gqa linear --tasks mqar,copy` from the shell; `sweep.carry_out` from Python.
"""
