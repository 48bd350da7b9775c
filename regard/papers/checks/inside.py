"""Checks of rows that read embeddings, codes and weights."""

from __future__ import annotations
