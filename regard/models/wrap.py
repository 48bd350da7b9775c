"""Run code around a method of one object, and restore everything in any thread.

PyTorch's forward hooks come in pairs, and the second of a pair is not run after a
KeyboardInterrupt (nor after anything else that is not an Exception). Here the whole call is inside
one `try`: what was entered is exited in the same frame, even if another thread detaches meanwhile.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import nn

from regard.models.removal import Removal, exclusive, untraced

A = TypeVar("A", bound="Around")


class Around(ABC):
    """Code around a method, for all its holders: attachments, the outermost first."""

    order: ClassVar[int] = 0

    def __init__(self) -> None:
        self.holders: list[Any] = []

    def __init_subclass__(cls) -> None:
        if "run" in vars(cls):
            untraced(inspect.unwrap(vars(cls)["run"]))

    @abstractmethod
    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the method, with other code around it."""

    def changed(self) -> None:  # noqa: B027
        """Called after `holders` changed, perhaps to none; does nothing by default."""


class Wrapped:
    """A wrapper in the `__dict__` of an object, in place of a method of its class.

    A copy or a pickle of the object gets the plain method: it has no stages, and a warning says so.
    (A shallow copy shares its submodules, and their stages.)
    """

    def __init__(self, owner: Any, name: str, own: Any) -> None:
        self._owner, self._name, self._own = owner, name, own
        self.arounds: tuple[Around, ...] = ()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method without us; `inspect.signature` reads it."""
        if self._own is not None:
            return self._own  # type: ignore[no-any-return]
        owner = self._owner
        return getattr(type(owner), self._name).__get__(owner)  # type: ignore[no-any-return]

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, with everything around it."""
        arounds, run = self.arounds, self.__wrapped__
        if len(arounds) == 1:
            return arounds[0].run(run, *args, **kwargs)
        for around in reversed(arounds):
            run = _inside(around, run)
        return run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and not name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        _say_plain()
        return _plain(memo.get(id(self._owner), self._owner), self._name, self._own)

    def __reduce__(self) -> Any:
        _say_plain()
        return _plain, (self._owner, self._name, self._own)


class _State:
    """The `__getstate__` of an attached object: its state without wrappers.

    Otherwise a shallow copy would have a forward that is bound to the original.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __call__(self) -> Any:
        kind: Any = type(self._owner)
        state = kind.__getstate__(self._owner)
        if not isinstance(state, dict):
            return state
        if any(isinstance(x, Wrapped) for x in state.values()):
            _say_plain()
        own = {name: x._own if isinstance(x, Wrapped) else x for name, x in state.items()}
        ours = {name for name, x in state.items() if isinstance(x, Wrapped | _State)}
        return {name: x for name, x in own.items() if name not in ours or _is_own(x)}


def _is_own(x: Any) -> bool:
    return x is not None and not isinstance(x, _State)


def _inside(around: Around, run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: around.run(run, *args, **kwargs)


def _plain(owner: Any, name: str, own: Any) -> Any:
    return own if own is not None else getattr(type(owner), name).__get__(owner)


def _say_plain() -> None:
    warnings.warn(
        "a model is copied or saved while stages are attached to it; the copy has no stages. "
        "Fix: copy it before attaching, or attach to the copy as well",
        stacklevel=3,
    )


@exclusive
def hold(
    owner: Any,
    name: str,
    make: Callable[[], A],
    holder: Any,
    undo: Removal,
    *,
    join: bool = True,
) -> A:
    """Put an `Around` around a method, or join one of its class, until `undo` is called.

    A lower `order` is outside, then the one that came first. With `join=False` it does not join
    another of its class.

    >>> class Shout(Around):
    ...     def run(self, plain, *args, **kwargs):
    ...         return plain(*args, **kwargs).upper()
    >>> class Greeter:
    ...     def greet(self): return "hello"
    >>> one, undo = Greeter(), Removal()
    >>> around = hold(one, "greet", Shout, "me", undo)
    >>> one.greet(), undo(), one.greet()
    ('HELLO', None, 'hello')
    """
    home = vars(owner)
    found, made = home.get(name), make()
    wrapped = found if isinstance(found, Wrapped) else Wrapped(owner, name, found)
    undo.add(lambda: _let_go(home, wrapped, holder))
    kind = type(made)
    around = next((x for x in wrapped.arounds if join and isinstance(x, kind)), made)
    if around is made:
        wrapped.arounds = tuple(sorted((*wrapped.arounds, made), key=lambda x: x.order))
    around.holders = [*around.holders, holder]
    around.changed()
    home.setdefault("__getstate__", _State(owner))
    home[name] = wrapped
    return around


def _let_go(home: dict[str, Any], wrapped: Wrapped, holder: Any) -> None:
    for around in wrapped.arounds:
        around.holders = [x for x in around.holders if x is not holder]
        around.changed()
    wrapped.arounds = tuple(x for x in wrapped.arounds if x.holders)
    # If other code has wrapped the method since, its wrapper calls ours, which passes it on.
    if not wrapped.arounds and home.get(wrapped._name) is wrapped:
        if wrapped._own is not None:
            home[wrapped._name] = wrapped._own
        else:
            home.pop(wrapped._name, None)
    wrapping = any(isinstance(x, Wrapped) for x in home.values())
    if not wrapping and isinstance(home.get("__getstate__"), _State):
        home.pop("__getstate__", None)


class _Before(Around):
    """Runs a policy's function in place of a forward."""

    order = 1  # inside of what records the forward

    def __init__(self, ours: Callable[..., Any]) -> None:
        super().__init__()
        self.ours = ours

    def run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.ours(plain, *args, **kwargs)


def put_before(module: nn.Module, ours: Callable[..., Any]) -> Removal:
    """Run `ours(forward, ...)` in place of a module's forward; return what undoes it."""
    undo = Removal()
    hold(module, "forward", lambda: _Before(ours), ours, undo, join=False)
    return undo
