"""Frozen values that are compared, hashed, printed and saved by content.

Rules are made of values. A value may hold numbers, text, tuples, other values, tensors and
functions. Two values are equal if their parts are; tensors are compared by content, hashed
by shape, and printed in Python that reads back (in messages, by shape).

A value holds the tensors it is given, not copies: a change of one in place changes the value,
and everything derived from the old contents is derived again. (A list, or a tensor of another
dtype than the part keeps, is copied when the part is made.)
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

import torch
from torch import Tensor

from regard.core import value_text
from regard.core.errors import RuleError, fail, shape_of
from regard.core.reach import Reached, Stamp, reached
from regard.core.value_text import Show, Trusted

T = TypeVar("T")
_TYPES: dict[str, type[Value]] = {}
# What `memo` built for values without tensors and functions, oldest first.
_shared: OrderedDict[Hashable, Any] = OrderedDict()
_KEPT = 256


class _Memo(NamedTuple):
    """What was derived from a value, and how everything that it reads was then."""

    kept: OrderedDict[Hashable, Any]
    stamps: tuple[Stamp, ...]
    settings: tuple[Hashable, ...]

    def holds(self, now: Reached) -> bool:
        """Return whether nothing that the value reads has changed since."""
        if len(self.stamps) != len(now.tensors) or self.settings != now.settings:
            return False
        return all(s.holds(x) for s, x in zip(self.stamps, now.tensors, strict=True))


class Value:
    """A frozen value; subclasses are made with `@value`.

    >>> from regard.core.support import Causal, Window
    >>> Causal() & Window(4) == Causal() & Window(4)
    True
    >>> {Causal(): "the past"}[Causal()]
    'the past'
    """

    # Which axis of which tensor counts the query heads.
    _head_axis: ClassVar[dict[str, int]] = {}
    # Names of the parts, in order; `@value` fills it in.
    _parts: ClassVar[tuple[str, ...]] = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def fields(self) -> tuple[tuple[str, Any], ...]:
        """Return name and content of each part, in order."""
        return tuple([(name, getattr(self, name)) for name in self._parts])

    def memo(self, key: Hashable, build: Callable[[], T]) -> T:
        """Build something derived from this value once, and cache it while nothing changes.

        Values without tensors share what equal values built; others keep it as long as they live,
        and forget it when a tensor of theirs, or of a function of theirs, changes in place.
        """
        full_key: Hashable = key
        if self.tensors() or self.functions():
            now = self.reads()
            mine: _Memo | None = self.__dict__.get("_memo")
            if mine is None or not mine.holds(now):
                stamps = tuple(map(Stamp.of, now.tensors))
                mine = self.__dict__["_memo"] = _Memo(OrderedDict(), stamps, now.settings)
            kept = mine.kept
        else:
            kept, full_key = _shared, (self, key)
        found = kept.get(full_key, _shared)
        if found is _shared:
            found = kept[full_key] = build()
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        return found  # type: ignore[no-any-return]  # it was kept untyped

    @property
    def signature(self) -> Hashable:
        """What is left of the value when tensors are reduced to shape, dtype and device.

        Compiled kernels depend on no more than this. It is asked anew each time, since a module
        that moves or freezes its parameters changes these in place.
        """
        tensors = self.tensors()
        if not tensors:
            return self._skeleton
        kinds = ((tuple(x.shape), x.dtype, x.device.type, x.requires_grad) for x in tensors)
        return (self._skeleton, *kinds)

    @property
    def _skeleton(self) -> Hashable:
        """The value with its tensors left out."""
        found = self.__dict__.get("_bones")
        if found is None:
            found = (type(self).__name__, *(_bare(x) for _, x in self.fields()))
            self.__dict__["_bones"] = found
        return found

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(self) is type(other) and self._says_the_same(other)

    def _says_the_same(self, other: Any) -> bool:
        """Compare with another value of the same type, part by part."""
        pairs = zip(self.fields(), other.fields(), strict=True)
        return all(_same(a, b) for (_, a), (_, b) in pairs)

    def __hash__(self) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = self._hashed()
        return found

    def _hashed(self) -> int:
        return hash((type(self).__name__, *(_hash_of(x) for _, x in self.fields())))

    def __repr__(self) -> str:
        return self._text(value_text.exactly)

    def __str__(self) -> str:
        return self._text(value_text.briefly)

    def _text(self, show: Show) -> str:
        """Write the value; `show` writes its parts."""
        return f"{type(self).__name__}({value_text.arguments(self, show)})"

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.fields())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return every tensor in the value, depth first."""
        found: tuple[Tensor, ...] | None = self.__dict__.get("_tensors")
        if found is None:
            found = ()
            # Parts cache their own: a rule rebuilt at each step is cheap.
            for name in self._parts:
                x = getattr(self, name)
                if isinstance(x, Value):
                    found += x.tensors()
                elif isinstance(x, Tensor):
                    found += (x,)
                elif isinstance(x, tuple):
                    found += tuple(y for y in _leaves(x) if isinstance(y, Tensor))
            self.__dict__["_tensors"] = found
        return found

    def functions(self) -> tuple[Callable[..., Any], ...]:
        """Return every function in the value, depth first."""
        found: tuple[Callable[..., Any], ...] | None = self.__dict__.get("_functions")
        if found is None:
            found = tuple(x for x in _leaves(self) if callable(x) and not isinstance(x, Tensor))
            self.__dict__["_functions"] = found
        return found

    def reads(self) -> Reached:
        """Everything the meaning of the value depends on: its tensors, and what functions reach.

        >>> from regard.core.score import ScoreStep
        >>> layer = torch.nn.Linear(1, 1)
        >>> step = ScoreStep(lambda s, b, h, i, j: layer(s[..., None])[..., 0])
        >>> len(step.tensors()), len(step.reads().tensors)
        (0, 2)
        """
        functions = self.functions()
        if not functions:
            return Reached(self.tensors(), ())
        more = reached(*functions)
        return Reached((*self.tensors(), *more.tensors), more.settings)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Return the same value with other tensors, in the order of `tensors()`.

        They must be shaped as the old ones: nothing is checked again, so that this can be done
        while a graph is traced or recomputed.

        >>> from regard.core.score import Alibi
        >>> Alibi(torch.zeros(2)).with_tensors([torch.ones(2)]).slopes.tolist()
        [1.0, 1.0]
        """
        rest = iter(tensors)
        made = _swapped(self, rest)
        left = len(list(rest))
        if left:
            fail(
                RuleError,
                "tensors",
                f"{len(tensors)} tensors",
                f"{len(tensors) - left}, one for each of the value",
                "swap what tensors() gave",
            )
        return made  # type: ignore[no-any-return]  # of the type of self

    def take_heads(self, heads: Sequence[int]) -> Self:
        """Return what belongs to some of the query heads: head x of it is head heads[x] of this."""
        changed: dict[str, Any] = {}
        for name, x in self.fields():
            axis = self._head_axis.get(name)
            if axis is not None and isinstance(x, Tensor) and x.shape[axis] > 1:
                changed[name] = x.index_select(axis, torch.tensor(heads, device=x.device))
            elif isinstance(x, Value):
                changed[name] = x.take_heads(heads)
            elif isinstance(x, tuple) and any(isinstance(y, Value) for y in x):
                changed[name] = tuple(y.take_heads(heads) for y in x)
        return self.replace(**changed) if changed else self

    def replace(self, **changes: Any) -> Self:
        """Return the same value with some parts changed."""
        return dataclasses.replace(self, **changes)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move every tensor to `device`, and floating ones to `dtype`."""
        return _moved(self, device, dtype)  # type: ignore[no-any-return]  # of the type of self

    def to_json(self) -> str:
        """Write the value as JSON text; `from_json` reads it back.

        >>> from regard.core.support import Window
        >>> Value.from_json(Window(8).to_json())
        Window(8)
        """
        return value_text.to_json(self)

    @classmethod
    def from_json(cls, text: str, trust: Trusted = ()) -> Any:
        """Read a value written by `to_json`, of this class or one below it.

        A text that names functions is refused unless their modules are named in `trust`: to read
        it is to run code of those modules.
        """
        made = value_text.from_json(text, _TYPES, trust)
        if not isinstance(made, cls):
            said = type(made).__name__ if isinstance(made, Value) else shape_of(made)
            want = f"the JSON of a {cls.__name__}"
            fail(RuleError, "text", said, want, "read it with Value.from_json")
        return made


@dataclass_transform(frozen_default=True)
def value(kind: type[T]) -> type[T]:
    """Turn `kind` into a frozen `Value` that can be saved under its class name."""
    made = dataclasses.dataclass(frozen=True, eq=False, repr=False)(kind)
    made._parts = tuple(f.name for f in dataclasses.fields(made))  # type: ignore[attr-defined, arg-type]  # every kind is a Value
    _TYPES[kind.__name__] = made  # type: ignore[assignment]  # and the checker cannot know it
    return made


def types() -> dict[str, type[Value]]:
    """Return every class of values by the name it is saved under."""
    return dict(_TYPES)


def same_objects(a: Value, b: Value) -> bool:
    """Return whether two values are equal and will stay so: their tensors are the same objects."""
    if a != b:
        return False
    return all(x is y for x, y in zip(a.tensors(), b.tensors(), strict=True))


def _leaves(x: Any) -> Iterator[Any]:
    """Return everything in a value that is no value and no tuple."""
    if isinstance(x, Value):
        for _, y in x.fields():
            yield from _leaves(y)
    elif isinstance(x, tuple):
        for y in x:
            yield from _leaves(y)
    else:
        yield x


def _bare(x: Any) -> Hashable:
    if isinstance(x, Value):
        return x._skeleton
    if isinstance(x, Tensor):
        return "a tensor"
    if isinstance(x, tuple):
        return tuple(_bare(y) for y in x)
    return (type(x).__name__, x)


def _hash_of(x: Any) -> Hashable:
    if isinstance(x, Tensor):
        return tuple(x.shape)
    return tuple(_hash_of(y) for y in x) if isinstance(x, tuple) else x


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b.to(a.device)))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    if numbers and not isinstance(a, bool) and not isinstance(b, bool):
        return bool(a == b)  # a scale of 1 is a scale of 1.0
    return bool(type(a) is type(b) and a == b)


def _swapped(x: Any, rest: Iterator[Tensor]) -> Any:
    if isinstance(x, Tensor):
        found = next(rest, None)
        if found is None:
            fail(
                RuleError,
                "tensors",
                "too few tensors",
                "one for each of the value",
                "swap what tensors() gave",
            )
        return found
    if isinstance(x, tuple):
        return tuple(_swapped(y, rest) for y in x)
    if isinstance(x, Value) and x.tensors():
        made = object.__new__(type(x))
        made.__setstate__({name: _swapped(y, rest) for name, y in x.fields()})
        return made
    return x


def _moved(x: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
    if isinstance(x, tuple):
        return tuple(_moved(y, device, dtype) for y in x)
    if isinstance(x, Value) and x.tensors():
        return x.replace(**{name: _moved(y, device, dtype) for name, y in x.fields()})
    return x
