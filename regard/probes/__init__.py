"""Probes: stages that measure what the heads of a model do."""

from regard.probes.base import Probe, RowMean
from regard.probes.reading import Reading
from regard.probes.registry import groups, known, make_probes, register
from regard.probes.scores import Head, Scores, head_name

__all__ = [
    "Head", "Probe", "Reading", "RowMean", "Scores", "groups", "head_name", "known", "make_probes",
    "register",
]  # fmt: skip
