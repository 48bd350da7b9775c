"""Checks of rows that choose keys by content: blocks, landmarks, agents, hashes, probes."""

from __future__ import annotations
