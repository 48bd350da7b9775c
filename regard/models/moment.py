"""When a call is made: which step of generating or denoising, and what the model was told of it.

A forward pre-hook on the attached model notes the moment, in the thread that runs the forward; the
engine puts it on the site of each call (`call.site.moment`).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from regard.core.errors import RuleError, ShapeError, fail


@dataclass(frozen=True, eq=False)
class Moment:
    """What is known of the forward that is running.

    `step` counts from 0: in generating with a cache, 0 is the prompt, and each further forward
    counts one; in denoising it counts the timesteps met, anew when the first comes again.
    `branches` names equal blocks of the rows of the batch, in their order, where guidance is told;
    `grid` is the image in tokens (frames first, in a video), `images` how many tokens that makes.
    `image_tokens` bool [b, n] marks those of a prompt that stand for an image, where the model's
    config names their id. `positions` [b or 1, n] are those of the tokens, where they were told.

    >>> now = Moment(3, branches=("unconditional", "conditional"), grid=(4, 6))
    >>> now.rows("conditional", 8), now.images
    (slice(4, 8, None), 24)
    """

    step: int
    timestep: Any = None
    branches: tuple[str, ...] | None = None
    grid: tuple[int, ...] | None = None
    packed: int | None = None
    image_tokens: Any = None
    positions: Any = None

    @property
    def images(self) -> int | None:
        """Count the tokens of the image; None where the model does not tell."""
        return prod(self.grid) if self.packed is None and self.grid else self.packed

    def rows(self, branch: str, b: int) -> slice:
        """Give the rows of a batch of `b` that belong to a guidance branch."""
        names = self.branches or ()
        if branch not in names:
            fail(
                RuleError,
                "branch",
                repr(branch),
                f"one of {names}" if names else "branches that are told",
                "run the model within regard.models.diffusers.branches(*names of the halves)",
            )
        if b % len(names):
            fail(
                ShapeError,
                "batch",
                f"{b} rows",
                f"rows for {len(names)} branches: {', '.join(names)}",
                "name as many branches as the batch holds",
            )
        size, at = b // len(names), names.index(branch)
        return slice(at * size, (at + 1) * size)

    def grid_of(self, tokens: int) -> tuple[int, ...] | None:
        """Give the grid of so many image tokens, at any halving of the whole; None if none fits.

        >>> Moment(0, grid=(5, 8)).grid_of(12)
        (3, 4)
        """
        grid = self.grid
        while grid is not None and prod(grid) > tokens and max(grid[-2:]) > 1:
            grid = (*grid[:-2], *(-(-x // 2) for x in grid[-2:]))
        return grid if grid is not None and prod(grid) == tokens else None


Removal = Callable[[], None]
# Reads a moment from a model, the arguments of its forward and what is kept between forwards.
Reader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], dict[Any, Any]], Moment]


class _Now(threading.local):
    def __init__(self) -> None:
        self.moments: list[tuple[nn.Module, Moment]] = []
        self.told: list[tuple[str, ...]] = []


_now = _Now()
_lock = threading.RLock()
# A followed model -> how many follow it, and what undoes that.
_followed: WeakKeyDictionary[nn.Module, tuple[int, list[Removal]]] = WeakKeyDictionary()


def current_moment() -> Moment | None:
    """Give the moment of the innermost forward of a followed model; None outside of one.

    >>> current_moment() is None
    True
    """
    return _now.moments[-1][1] if _now.moments else None


@contextmanager
def changed(**parts: Any) -> Iterator[None]:
    """Run a part of a forward at a moment that differs: with fewer branches in the batch, say."""
    module, now = _now.moments[-1]
    _now.moments.append((module, replace(now, **parts)))
    try:
        yield
    finally:
        _now.moments.pop()


def told_branches() -> tuple[str, ...] | None:
    """Give the guidance branches that are told now."""
    return (_now.told[-1] or None) if _now.told else None


@contextmanager
def telling(*names: str) -> Iterator[None]:
    """Tell which guidance branches the batches within hold."""
    _now.told.append(names)
    try:
        yield
    finally:
        _now.told.pop()


def follow(
    model: nn.Module, read: Reader, listen: Callable[[nn.Module], Removal] | None = None
) -> Removal:
    """Note the moment of each forward of a model, until what is given back is called.

    `listen` hears what else the model is told, and gives what stops it.
    """
    kept = threading.local()
    inside = 0

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal inside
        found = read(module, args, kwargs, kept.__dict__)
        with _lock:
            inside += 1
        _now.moments.append((module, found))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        nonlocal inside
        # A hook of somebody else may have raised before we entered.
        if _now.moments and _now.moments[-1][0] is module:
            _now.moments.pop()
            with _lock:
                inside -= 1
                if not inside and module not in _followed:
                    left.remove()

    def unhook() -> None:
        """Take the hooks off; a forward that is running keeps its leave, which takes itself off."""
        entered.remove()
        if not inside:
            left.remove()

    with _lock:
        count, undo = _followed.get(model, (0, []))
        if not count:
            entered = model.register_forward_pre_hook(enter, with_kwargs=True)
            left = model.register_forward_hook(leave, always_call=True)
            undo = [unhook, *([] if listen is None else [listen(model)])]
        _followed[model] = (count + 1, undo)
    done = False

    def remove() -> None:
        nonlocal done
        with _lock:
            if done:
                return
            done = True
            count, undo = _followed[model]
            if count > 1:
                _followed[model] = (count - 1, undo)
                return
            del _followed[model]
            for step in undo:
                step()

    return remove


def by_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keep: dict[Any, Any]
) -> Moment:
    """Count the forwards that fill one cache; without one, or with an empty one, it is step 0."""
    names = inspect.signature(model.forward).parameters if args else ()
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    cache, positions = given.get("past_key_values"), given.get("position_ids")
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return Moment(0, positions=positions)
    counts = keep.setdefault("caches", WeakKeyDictionary())
    counts[cache] = counts.get(cache, 0) + 1 if int(length()) else 0
    return Moment(counts[cache], positions=positions)
