"""Triton's interpreter, a third faster: its language is remapped once a launch.

Each function that a kernel calls would remap it again, which changes nothing and walks through
every member of the language. Where the interpreter is not as it was, it is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class _Kept:
    """The scope of a remapping that was there already."""

    def restore(self) -> None: ...


@contextmanager
def remapped_once() -> Iterator[None]:
    """Remap the language once for all that a launch of a kernel calls."""
    interpreter: Any = pytest.importorskip("triton.runtime.interpreter")
    launcher = getattr(interpreter, "GridExecutor", None)
    if launcher is None or not hasattr(interpreter, "_patch_lang"):
        yield
        return
    remap, launch, done = interpreter._patch_lang, launcher.__call__, set()

    def once(fn: Any) -> Any:
        home = fn.__globals__["__name__"]
        if home in done:
            return _Kept()
        done.add(home)
        return remap(fn)

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()
        return launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", once)
        patch.setattr(launcher, "__call__", launched)
        yield
