"""A check that trains a model on one task, then on two, and asks which heads came."""

from __future__ import annotations
