"""Check of attention buckets: several rotary bases, whose copies are models of their own."""

from __future__ import annotations
