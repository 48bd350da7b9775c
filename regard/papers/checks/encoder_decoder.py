"""The check of the row that all others start from."""

from __future__ import annotations
