"""What every error must say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regard.core.errors import MissingExtraError, RegardError


def assert_named(call: Callable[[], object], kind: type[RegardError], word: str) -> None:
    """The error is of this kind, holds the word, and has its four parts."""
    with pytest.raises(RegardError) as raised:
        call()
    assert type(raised.value) is kind
    said = str(raised.value)
    usual = ("`", "got ", "expected ") if kind is not MissingExtraError else (" is required: ",)
    for part in (word, *usual, "Fix: "):
        assert part in said
    assert len(raised.value.fix) > 5
