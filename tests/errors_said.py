"""What every error must say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regard.core.errors import RegardError


def assert_named(call: Callable[[], object], kind: type[RegardError], word: str) -> None:
    """The error is of this kind, holds the word, and has its four parts."""
    with pytest.raises(RegardError) as raised:
        call()
    assert type(raised.value) is kind
    said = str(raised.value)
    for part in (word, "`", "got ", "expected ", "To put it right: "):
        assert part in said
    assert len(raised.value.fix) > 5
