"""Checks of rows over the steps of denoising: windows of the trained size, gates, few bits."""

from __future__ import annotations
