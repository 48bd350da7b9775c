"""Checks of rows about votes, relations, gates and convolutions."""

from __future__ import annotations
