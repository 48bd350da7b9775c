"""The check of the row that lets a user program scores and masks."""

from __future__ import annotations
