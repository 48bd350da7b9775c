"""Checks of rows about contexts read in pieces."""

from __future__ import annotations
