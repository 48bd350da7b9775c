"""Checks of rows that explain attention in small models: what is proven, and what is learned."""

from __future__ import annotations
