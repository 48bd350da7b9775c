"""Undo what was done to a model: once, completely, and whatever is raised meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch
from torch._C._dynamo import eval_frame as _frames

T = TypeVar("T")
P = ParamSpec("P")

# One lock for everything that attaching and detaching write, from any thread.
_LOCK: Any = threading.RLock()


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """Keep `torch.compile` from tracing a function; what it calls is compiled as usual.

    Traced code is split into graphs, and one does not exit the contexts that another entered.
    """
    code: Any = function
    todo = [code.__code__]
    while todo:
        one = todo.pop()
        _skip(one)
        todo += [x for x in one.co_consts if isinstance(x, CodeType)]
    code._torchdynamo_disable = True
    return function


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Keep `torch.compile` from tracing a function, and everything that it calls.

    Code that reads positions and lengths as numbers would be recompiled at each decoding step.
    """
    code: Any = function
    if not hasattr(_frames, "set_code_exec_strategy"):
        disabled: Callable[P, T] = torch.compiler.disable(function)
        return disabled
    action = _frames._FrameAction
    _frames.set_code_exec_strategy(
        code.__code__, _frames._FrameExecStrategy(action.SKIP, action.SKIP)
    )
    code._torchdynamo_disable = True
    return function


def _skip(code: CodeType) -> None:
    frames: Any = _frames
    if hasattr(frames, "skip_code"):
        frames.skip_code(code)
        return
    action = frames._FrameAction
    strategy = frames._FrameExecStrategy(action.SKIP, action.DEFAULT)
    frames.set_code_exec_strategy(code, strategy)


@untraced
def run_within(run: Callable[[], T], leave: Callable[[], None]) -> T:
    """Return `run()`, and restore what it changed, whatever is raised.

    `leave` restores, and may be called at any time. It is called twice: one exception, raised at
    any line (Ctrl-C), can keep only one of the two calls from running.
    """
    try:
        try:
            return run()
        finally:
            leave()
    finally:
        leave()


def exclusive(function: Callable[P, T]) -> Callable[P, T]:
    """Let one thread at a time run the decorated functions; they may call each other.

    An exception at the end of a `with` may come before its lock is released, and then no other
    thread could ever attach again: so the lock is released by `run_within`, like everything else.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        if _LOCK._is_owned():
            return function(*args, **kwargs)

        def run() -> T:
            _LOCK.acquire()
            return function(*args, **kwargs)

        def leave() -> None:
            while _LOCK._is_owned():
                _LOCK.release()

        return run_within(run, leave)

    return alone


class Removal:
    """Steps that undo something, run in reverse, each once; calling it again does nothing more.

    Add a step *before* the change that it undoes, and make it harmless where the change was never
    made: then an exception at any moment leaves nothing behind. A step that raises is tried once
    more (it may have been interrupted); it never keeps the others from running.

    >>> done = []
    >>> undo = Removal(lambda: done.append("first"), lambda: done.append("last"))
    >>> undo(), undo(), done, undo.pending
    (None, None, ['last', 'first'], False)
    """

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self._tried: Callable[[], object] | None = None

    @property
    def pending(self) -> bool:
        """Whether anything is left to undo."""
        return bool(self._steps)

    def add(self, step: Callable[[], object]) -> None:
        """Add a step; it will be the first to run."""
        self._steps.append(step)

    @exclusive
    def __call__(self) -> None:
        """Undo everything that is left; raise the first error afterwards."""
        raised: BaseException | None = None
        while self._steps:
            step = self._steps[-1]
            try:
                step()
                self._done(step)
            except BaseException as e:
                raised = raised or e
                if self._tried is step:
                    self._done(step)
                self._tried = step
        self._tried = None
        if raised is not None:
            raise raised

    def _done(self, step: Callable[[], object]) -> None:
        if self._steps and self._steps[-1] is step:
            self._steps.pop()
