"""Checks of rows about recommending, and of an RNN that looks back."""

from __future__ import annotations
