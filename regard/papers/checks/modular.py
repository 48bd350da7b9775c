"""The check of the row about tokens that wake attention."""

from __future__ import annotations
