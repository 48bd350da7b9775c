"""The check of the row that asks of every layer which of the four patterns it can look in."""

from __future__ import annotations
