"""The check of reading window by window."""

from __future__ import annotations
