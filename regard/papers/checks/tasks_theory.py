"""Checks of rows of theory: what heads learn to regress, and what rank and random heads can do."""

from __future__ import annotations
