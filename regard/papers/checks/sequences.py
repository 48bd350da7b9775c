"""Checks of rows about how sequences are laid out and scanned."""

from __future__ import annotations
