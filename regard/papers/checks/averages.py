"""Checks of rows about moving averages, and memories that learn while they read."""

from __future__ import annotations
