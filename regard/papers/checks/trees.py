"""The check of walking down a tree of the context."""

from __future__ import annotations
