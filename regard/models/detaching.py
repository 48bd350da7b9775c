"""Base of handles that detach at the end of a `with`."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from regard.models.attach import Attached


class Detaching:
    """A handle with an `Attached`, which detaches at the end of a `with`."""

    attached: Attached

    def detach(self) -> None:
        """Restore the model."""
        self.attached.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.detach()
