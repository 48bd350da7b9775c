"""The check of attention and a state space side by side."""

from __future__ import annotations
