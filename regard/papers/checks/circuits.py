"""Checks of rows about circuits: heads that are wired by hand, or trained, and are to be found."""

from __future__ import annotations

import torch

CLEAN = torch.tensor([[0, 3, 1, 4, 2, 5, 0, 3]])
