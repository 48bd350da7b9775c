"""Checks of the sizes that layers are built with."""

from __future__ import annotations

from regard.core.errors import ShapeError, ValueRangeError, fail


def need_size(name: str, x: object, least: int = 1) -> None:
    """Raise unless x is a whole number of at least `least`."""
    if not isinstance(x, int) or isinstance(x, bool) or x < least:
        fail(
            ValueRangeError, name, repr(x), f"a whole number of at least {least}",
            "pass the size as an int",
        )  # fmt: skip


def need_divisor(name: str, x: int, of: str, whole: int) -> None:
    """Raise unless x divides the whole."""
    if whole % x:
        fail(
            ShapeError, name, x, f"a divisor of the {whole} {of}",
            f"choose one of {[y for y in range(1, whole + 1) if whole % y == 0]}",
        )  # fmt: skip


def need_share(name: str, x: object) -> None:
    """Raise unless x is a number from 0 up to 1, 1 left out."""
    if not isinstance(x, int | float) or not 0 <= x < 1:
        fail(ValueRangeError, name, repr(x), "a share from 0 up to 1", "leave it at 0")
