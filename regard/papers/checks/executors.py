"""Checks of rows that an executor runs."""

from __future__ import annotations
