"""Checks of rows about length: what positions do for longer texts, and how a place is found."""

from __future__ import annotations
