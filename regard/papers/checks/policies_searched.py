"""Checks of rows whose policies search or learn first: spans, gates, groups of layers."""

from __future__ import annotations

from regard.core.rule import Rule
from regard.core.support import Causal

CAUSAL = Rule(Causal())
