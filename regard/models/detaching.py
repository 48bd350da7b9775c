"""What works on a model until it is detached, or its `with` ends."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from regard.models.attach import Attached


class Detaching:
    """Detach at the end of a `with`: base of what holds an `Attached`."""

    attached: Attached

    def detach(self) -> None:
        """Restore the model as it was."""
        self.attached.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.detach()
