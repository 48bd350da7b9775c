"""The check of translating on a grid."""

from __future__ import annotations
