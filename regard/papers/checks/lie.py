"""The check of attention that does not mind where its points stand."""

from __future__ import annotations
