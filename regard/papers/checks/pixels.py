"""Checks of rows that show everything as pixels."""

from __future__ import annotations
