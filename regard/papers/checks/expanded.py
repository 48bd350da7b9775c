"""Check of expanded queries: states in place of keys and values, kept once."""

from __future__ import annotations
