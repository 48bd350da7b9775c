"""Checks of rows that edit a model by what was found in it."""

from __future__ import annotations
