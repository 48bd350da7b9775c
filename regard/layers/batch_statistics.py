"""Statistics that a layer keeps of its training batches, without gradient."""

from __future__ import annotations

import torch
from torch import nn


def keeps_statistics(layer: nn.Module) -> bool:
    """Return whether this forward may update what a layer keeps of its batches.

    It may while training, except where activation checkpointing runs the forward a second time
    inside the backward: a batch counts once, and the second run must read what the first one read.

    >>> keeps_statistics(nn.Linear(2, 2).train()), keeps_statistics(nn.Linear(2, 2).eval())
    (True, False)
    """
    if torch.compiler.is_compiling():  # what is traced is a forward
        return layer.training
    # -1 outside of a backward; both kinds of checkpointing recompute inside of one.
    inside_backward = torch._C._current_graph_task_id() != -1
    return layer.training and not inside_backward
