"""Sweeps so small that tests run them."""

from regard.bench.run_budget import read_budget
from regard.bench.sweep import plan

TINY = {"dim": 16, "heads": 2, "batch": 8}
SMALL = "induction:period=4:vocab=8"


def tiny(layers=("mha",), tasks=(SMALL,), budget="4steps", **more):
    return plan(list(layers), list(tasks), budget=read_budget(budget), **{**TINY, **more})


def numbers(record):
    """What must be the same wherever and whenever a run is done."""
    curve = [(p["step"], p["loss"], p["score"]) for p in record["curve"]]
    return record["score"], record["loss"], record["tests"], curve, record["flops"]
