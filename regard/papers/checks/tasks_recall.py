"""Checks of rows about recall: what a text has told, and what it has left out."""

from __future__ import annotations
