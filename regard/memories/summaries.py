"""Summaries of pages of keys, by which pages are selected.

One store splits keys into pages; methods differ in the summary of a page.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.core.heads import take_batch
from regard.memories.stores import Plain, TokenStore


class Summaries(TokenStore):
    """One summary for each full page of `page` tokens; override `summary`.

    The newest page stays open, as tokens, until it is full. Cropping inside a full page drops it:
    its tokens must be appended again, as `len` shows.
    """

    def __init__(self, page: int) -> None:
        self.page, self._m = page, 0
        self._rows = Plain()  # [b, h, pages, c]
        self._open: Tensor | None = None

    @abstractmethod
    def summary(self, pages: Tensor) -> Tensor:
        """Summarize pages [b, h, t, page, d]: [b, h, t, c]."""

    def __len__(self) -> int:
        return self._m

    def append(self, x: Tensor) -> None:
        """Append tokens [b, h, n, d]."""
        if not x.shape[2]:
            return
        x = x if self._open is None else torch.cat((self._open, x), 2)
        self._m = self._m // self.page * self.page + x.shape[2]
        full = x.shape[2] // self.page * self.page
        if full:
            self._rows.append(self.summary(x[:, :, :full].unflatten(2, (-1, self.page))))
        self._open = x[:, :, full:].clone() if x.shape[2] > full else None

    def read(self) -> Tensor:
        """Return the summaries, [b, h, pages, c]."""
        return self._rows.read()

    @property
    def pages(self) -> int:
        """Count the summaries."""
        return self._m // self.page

    def crop(self, m: int) -> None:
        """Drop the end, and a page that is split."""
        if m >= self._m:
            return
        self._m = m // self.page * self.page
        self._rows.crop(self._m // self.page)
        self._open = None

    def reorder(self, rows: Tensor) -> None:
        """Select rows."""
        self._rows.reorder(rows)
        self._open = None if self._open is None else take_batch(self._open, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the summaries and of the open page."""
        open_ = 0 if self._open is None else self._open.untyped_storage().nbytes()
        return self._rows.nbytes + open_

    def state(self) -> dict[str, Any]:
        """Return summaries and open page."""
        return {"m": self._m, "rows": self._rows.state(), "open": self._open}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file."""
        self._m, self._open = state["m"], state["open"]
        self._rows.restore(state["rows"])


class Bounds(Summaries):
    """Least and largest key of each full page, by channel: low, high [b, g, pages, d].

    Tokens of an incomplete page are not kept: they must be appended again, as `len` shows.

    >>> bounds = Bounds(4)
    >>> bounds.append(torch.arange(6.0).view(1, 1, 6, 1))
    >>> bounds.low.flatten().tolist(), bounds.high.flatten().tolist(), len(bounds)
    ([0.0], [3.0], 4)
    """

    @property
    def takes(self) -> int:
        """The tokens of a page: fewer are ignored."""
        return self.page

    def append(self, x: Tensor) -> None:
        """Append the full pages of tokens [b, h, n, d]."""
        full = x.shape[2] // self.page * self.page
        if full:
            super().append(x[:, :, :full])

    def summary(self, pages: Tensor) -> Tensor:
        """Return both bounds."""
        # One at a time: on a CPU, `aminmax` along such an axis takes five times as long.
        return torch.cat((pages.amin(3), pages.amax(3)), -1)

    @property
    def low(self) -> Tensor:
        """Least keys."""
        rows = self.read()
        return rows[..., : rows.shape[3] // 2]

    @property
    def high(self) -> Tensor:
        """Largest keys."""
        rows = self.read()
        return rows[..., rows.shape[3] // 2 :]

    def empty(self) -> Bounds:
        """Return another."""
        return Bounds(self.page)


class LandmarkPages(Summaries):
    """One key for each full page, `make(pages)` of the appended tokens.

    Cropping inside a full page is refused: the tokens of its landmark are dropped.

    >>> marks = LandmarkPages(2, lambda pages: pages.mean(3))
    >>> marks.append(torch.arange(5.0).view(1, 1, 5, 1)); marks.read().flatten().tolist()
    [0.5, 2.5]
    """

    def __init__(self, page: int, make: Any) -> None:
        super().__init__(page)
        self.make = make

    def summary(self, pages: Tensor) -> Tensor:
        """Call `make`."""
        made: Tensor = self.make(pages)
        return made

    def crop(self, m: int) -> None:
        """Drop tokens of the open page."""
        if m < self._m // self.page * self.page:
            fail(
                CapabilityError, "length", m,
                f"at least {self._m // self.page * self.page}: the tokens of landmarks were "
                "dropped", "decode without speculation, or keep everything",
            )  # fmt: skip
        if m < self._m and self._open is not None:
            left = m - self._m // self.page * self.page
            self._m, self._open = m, self._open[:, :, :left].clone() if left else None

    def empty(self) -> LandmarkPages:
        """Return another."""
        return LandmarkPages(self.page, self.make)
