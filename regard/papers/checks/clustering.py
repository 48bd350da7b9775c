"""Checks of rows that gather tokens: into clusters, and into spans."""

from __future__ import annotations
