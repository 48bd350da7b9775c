"""Activation checkpointing: a forward that is recomputed in backward must have the same stages.

Backward recomputes a checkpointed part with the model as it is *then*. After detaching it would run
without the stages, and return wrong gradients silently: so it is refused when it begins.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from regard.core.errors import RegardError, fail

_CODES = {unwrap(checkpoint).__code__, unwrap(CheckpointFunction.forward).__code__}


class RecomputationError(RegardError):
    """Backward would recompute a part of a forward with other stages than it had."""


class RecordedForward:
    """A forward that autograd records, and whether any of its calls is checkpointed."""

    def __init__(self) -> None:
        self.checkpointed = False

    def watch(self, out: Any, begun: Sequence[Any], now: Callable[[], Sequence[Any]]) -> None:
        """Refuse a backward from `out` once `now()` lacks something that the forward began with."""
        if not self.checkpointed:
            return

        def refuse(_: Tensor) -> None:
            still = now()
            if not all(any(x is y for y in still) for x in begun):
                fail(
                    RecomputationError, "backward", "stages that were detached after the forward",
                    "the stages that the forward had, since activation checkpoints run it again",
                    "call backward() before detach(), within the with",
                )  # fmt: skip

        for x in _tensors(out):
            if x.requires_grad:
                x.register_hook(refuse)


class _RecordingThread(threading.local):
    def __init__(self) -> None:
        self.recorded: RecordedForward | None = None


thread = _RecordingThread()


def note_call(known: bool) -> bool:
    """Record a call that stages change; return whether it comes from a checkpointed forward.

    A call that is recomputed, though no forward with these stages was checkpointed (`known`),
    belongs to a forward from before they were attached: it is refused.
    """
    recorded = thread.recorded
    if recorded is not None:
        if not recorded.checkpointed:
            recorded.checkpointed = _under_checkpoint()
        return known or recorded.checkpointed
    if not known and recomputing() and _under_recomputation():
        fail(
            RecomputationError, "backward", "stages that were attached after the forward",
            "the stages that the forward had, since activation checkpoints run it again",
            "call backward() before attaching, or the forward within the with",
        )  # fmt: skip
    return known


def recomputing() -> bool:
    """Return whether this thread is inside a backward pass.

    >>> recomputing()
    False
    """
    return torch._C._current_graph_task_id() != -1


def _under_checkpoint() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code in _CODES:
            return True
        frame = frame.f_back
    return False


def _under_recomputation() -> bool:
    """Return whether a stack frame is of torch's checkpointing, which recomputes in backward."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == checkpoint.__module__:
            return True
        frame = frame.f_back
    return False


def _tensors(out: Any) -> Iterator[Tensor]:
    found = out.values() if isinstance(out, dict) else [out]
    for x in _pytree.tree_leaves(list(found)):
        if isinstance(x, Tensor):
            yield x
