"""The record of the running forward: step, timestep, branches, grid, padding, cache.

One wrapper around the forward of an attached model makes it, in the thread that runs the forward.
`current_forward()` returns it, and the engine adds it to each call.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from regard.core.errors import RuleError, ShapeError, fail
from regard.models.recomputation import RecordedForward
from regard.models.recomputation import thread as recording
from regard.models.removal import Removal, run_within
from regard.models.wrap import Around, hold
from regard.run.counting import COUNT


class WholeText(NamedTuple):
    """The whole text, of which this rank's forward runs a part.

    Masks are built for its `length` tokens; queries begin at `first`. `padding` [b, length]
    marks the real ones, and `documents` [b or 1, length] says which document each belongs to.
    """

    length: int
    first: int = 0
    padding: Tensor | None = None
    documents: Tensor | None = None


@dataclass(frozen=True, eq=False, init=False)
class Forward:
    """The record of the running forward.

    `step` counts from 0: when generating with a cache, 0 is the prompt, and each further forward
    counts one; when denoising it counts timesteps, from 0 again when the first one comes back.
    `branches` names equal blocks of rows of the batch, in order, where guidance is known; `grid` is
    the image in tokens (frames first, in a video), `images` its number of tokens. `image_tokens`
    bool [b, n] marks image placeholders in a prompt, where the model's config names their id.
    `positions` [b or 1, n] are those of the tokens, where they were passed, and `padding` [b, m]
    marks the real ones among the tokens so far. `cache` is the cache that the forward reads and
    fills; `weights` is whether weights are to be returned. `whole` is the text that the tokens are
    a part of, where a model is spread over devices.

    >>> now = Forward(3, branches=("unconditional", "conditional"), grid=(4, 6))
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
    padding: Any = None
    cache_ref: Any = None
    weights: bool = False
    whole: WholeText | None = None

    def __init__(
        self,
        step: int,
        timestep: Any = None,
        branches: tuple[str, ...] | None = None,
        grid: tuple[int, ...] | None = None,
        packed: int | None = None,
        image_tokens: Any = None,
        positions: Any = None,
        padding: Any = None,
        cache_ref: Any = None,
        weights: bool = False,
        whole: WholeText | None = None,
    ) -> None:
        parts = self.__dict__  # as a frozen dataclass would, in a third of the time: steps wait
        parts["step"], parts["timestep"], parts["branches"] = step, timestep, branches
        parts["grid"], parts["packed"], parts["image_tokens"] = grid, packed, image_tokens
        parts["positions"], parts["padding"], parts["cache_ref"] = positions, padding, cache_ref
        parts["weights"], parts["whole"] = weights, whole

    @property
    def cache(self) -> Any:
        """Return the cache; None without one, or once it is deleted (the reference is weak)."""
        return None if self.cache_ref is None else self.cache_ref()

    @property
    def images(self) -> int | None:
        """Return the number of tokens of the image; None where it is unknown."""
        return prod(self.grid) if self.packed is None and self.grid else self.packed

    def rows(self, branch: str, b: int) -> slice:
        """Return the rows of a batch of `b` that belong to a guidance branch."""
        names = self.branches or ()
        if branch not in names:
            fail(
                RuleError,
                "branch",
                repr(branch),
                f"one of {names}" if names else "known guidance branches",
                "run the model inside regard.models.diffusers.branches(*names of the halves)",
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
        """Return the grid of a number of image tokens, at any halving of `grid`; None if none fits.

        >>> Forward(0, grid=(5, 8)).grid_of(12)
        (3, 4)
        """
        grid = self.grid
        while grid is not None and prod(grid) > tokens and max(grid[-2:]) > 1:
            grid = (*grid[:-2], *(-(-x // 2) for x in grid[-2:]))
        return grid if grid is not None and prod(grid) == tokens else None


# Makes the record of a forward from a model, its arguments and what is kept between forwards.
Reader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], dict[Any, Any]], Forward]
# Changes the arguments of a forward that begins: (model, args, kwargs) -> (args, kwargs) or None;
# a third part is fields of the record that the arguments do not have.
Arrival = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class _ForwardThread(threading.local):
    """The forwards of this thread; empty outside of any forward."""

    def __init__(self) -> None:
        self.forwards: list[Forward] = []
        self.told: list[tuple[str, ...]] = []
        # The layer of a cache that took keys last (a weak reference).
        self.updated: Any = None


_thread = _ForwardThread()


def current_forward() -> Forward | None:
    """Return the innermost forward of an attached model that this thread runs; None outside.

    >>> current_forward() is None
    True
    """
    return _thread.forwards[-1] if _thread.forwards else None


def _within(stack: list[Any], item: Any) -> Iterator[None]:
    depth = len(stack)
    try:
        try:
            stack.append(item)
            yield
        finally:
            del stack[depth:]
    finally:
        del stack[depth:]


@contextmanager
def changed(**parts: Any) -> Iterator[None]:
    """Run a part of a forward under a changed record: fewer branches in the batch, say."""
    yield from _within(_thread.forwards, replace(_thread.forwards[-1], **parts))


def told_branches() -> tuple[str, ...] | None:
    """Return the guidance branches that are named now."""
    return (_thread.told[-1] or None) if _thread.told else None


@contextmanager
def telling(*names: str) -> Iterator[None]:
    """Name the guidance branches of the batches inside the `with`."""
    yield from _within(_thread.told, names)


def note_update(layer: Any, keys: Tensor) -> None:
    """Record that a cache layer has taken keys, and returns these to the model."""
    layer.returned = ref(keys)
    _thread.updated = ref(layer)


def layer_of(keys: Tensor) -> Any:
    """Return the cache layer that returned these very keys to the model; None if none did.

    It is found by identity, in the thread that runs the forward; the tensor has no attribute.
    """
    last = None if _thread.updated is None else _thread.updated()
    if last is None:
        return None
    if last.returned is not None and last.returned() is keys:
        return last
    return next((x for x in last.cache if _returned(x) is keys), None)


def _returned(layer: Any) -> Any:
    return None if layer.returned is None else layer.returned()


class _Follow(Around):
    """Records each forward of a model, for everything attached to it."""

    def __init__(self, model: nn.Module, read: Reader) -> None:
        super().__init__()
        self.model, self.read, self.kept = ref(model), read, threading.local()

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model()
        forwards, told = _thread.forwards, _thread.told
        depth, said, running = len(forwards), len(told), COUNT.depth
        outer, begun = recording.recorded, list(self.holders)
        recorded = RecordedForward() if torch.is_grad_enabled() else outer

        def run() -> Any:
            recording.recorded = recorded
            given: Any = (args, kwargs)
            parts: dict[str, Any] = {}
            for arrivals in self.holders:
                for arrive in arrivals.of:
                    made = arrive(model, *given)
                    if made:
                        given, parts = made[:2], {**parts, **(made[2] if len(made) > 2 else {})}
            now = self.read(model, given[0], given[1], self.kept.__dict__)
            forwards.append(replace(now, **parts) if parts else now)
            out = plain(*given[0], **given[1])
            if recorded is not None and recorded is not outer:
                recorded.watch(out, begun, lambda: self.holders)
            return out

        def leave() -> None:
            recording.recorded = outer
            del forwards[depth:]
            del told[said:]
            COUNT.depth = running

        return run_within(run, leave)


class _Arrivals:
    """What one attachment does when a forward begins."""

    def __init__(self, of: tuple[Arrival, ...]) -> None:
        self.of = of


def follow(
    model: nn.Module, read: Reader, undo: Removal, arrivals: tuple[Arrival, ...] = ()
) -> None:
    """Record each forward of a model until `undo` runs; `arrivals` may change its arguments."""
    hold(model, "forward", lambda: _Follow(model, read), _Arrivals(arrivals), undo)


@lru_cache(maxsize=256)
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def given_to(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward by name."""
    kind: Any = type(model)
    return {**dict(zip(_names(kind), args, strict=False)), **kwargs} if args else kwargs


def by_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keep: dict[Any, Any]
) -> Forward:
    """Count the forwards that fill one cache; without one, or with an empty one, it is step 0."""
    given = given_to(model, args, kwargs)
    cache, positions = given.get("past_key_values"), given.get("position_ids")
    padding = given.get("attention_mask")
    if not isinstance(padding, Tensor) or padding.dim() != 2:
        padding = None
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return Forward(0, positions=positions, padding=padding)
    last = keep.get("last")  # the same cache as before, mostly
    if last is None or last[0]() is not cache:
        counts = keep.setdefault("caches", WeakKeyDictionary())
        last = keep["last"] = ref(cache), counts.setdefault(cache, [0])
    there, count = last
    count[0] = count[0] + 1 if int(length()) else 0
    return Forward(count[0], positions=positions, padding=padding, cache_ref=there)
