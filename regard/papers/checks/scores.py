"""Checks of rows about how scores are made, and how they become weights."""

from __future__ import annotations
