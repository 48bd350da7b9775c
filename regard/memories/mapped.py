"""Tokens in a file that is mapped into memory: the system holds in memory what is being read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.files import FileError
from regard.core.heads import take_batch
from regard.memories.key_files import KeyFile, forks
from regard.memories.stores import TokenStore

# A file grows by so many bytes at least.
STEP = 1 << 16


class DiskError(FileError):
    """A file could not be made as large as it must be, or could not be read."""


class Mapped(TokenStore):
    """Tokens in a file of their own in `folder` (the system's, where none is named).

    The file goes when the store does, and is swept by others where its process was killed. Room is
    claimed before it is written to, so that a full disk is an error here and no crash later.

    After a fork parent and child read one file, and each sees what was there when they parted: who
    would write over it moves to a file of its own first.

    >>> store = Mapped()
    >>> store.append(torch.ones(1, 2, 3, 4)); store.append(torch.zeros(1, 2, 1, 4))
    >>> store.read().shape, store.nbytes, store.file_bytes >= 128
    (torch.Size([1, 2, 4, 4]), 0, True)
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._file: KeyFile | None = None
        self._x: Tensor | None = None  # [room, b, h, d]: tokens first, so that a file can grow
        self._m = 0
        # Tokens written so far, and how many of them a fork may read.
        self._written = self._lent = 0
        self._forks = forks()
        # Where tokens came from, and where they are read to.
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return self._m

    def append(self, x: Tensor) -> None:
        """Write behind the last token."""
        n, self._device = x.shape[2], x.device
        if not x.shape[3]:  # values of no width, as latents have
            self._m += n
            self._x = x.new_empty(self._m, x.shape[0], x.shape[1], 0)
            return
        shape = (x.shape[0], x.shape[1], x.shape[3])
        if self._is_shared():
            self._move()
        if self._x is None or self._x.shape[0] < self._m + n:
            self._map(self._m + n, shape, x.dtype)
        assert self._x is not None
        self._x[self._m : self._m + n] = x.detach().permute(2, 0, 1, 3)
        self._m += n
        self._written = max(self._written, self._m)

    def _is_shared(self) -> bool:
        """Return whether another process may read what the next token would be written over."""
        if forks() != self._forks:
            self._lent, self._forks = self._written, forks()
        return self._file is not None and (
            self._file.owner != os.getpid() or self._m < self._lent
        )  # fmt: skip

    def _move(self) -> None:
        """Go on in a file of our own."""
        assert self._x is not None
        held, self._file = self._x[: self._m], None
        self._map(self._m, tuple(held.shape[1:]), held.dtype)
        self._x[: self._m] = held
        self._written, self._lent = self._m, 0

    def _map(self, tokens: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Grow the file, and map it anew."""
        token = shape[0] * shape[1] * shape[2] * dtype.itemsize
        tokens = tokens + max(tokens // 2, STEP // token + 1)
        try:
            file = KeyFile(self.folder) if self._file is None else self._file
            handle = os.open(file.path, os.O_RDWR)
            try:
                # On a full disk this fails, where writing to the map would end the process.
                os.posix_fallocate(handle, 0, tokens * token)
            finally:
                os.close(handle)
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            fail(
                DiskError, "folder", f"{where} ({error.strerror})",
                f"room for {tokens * token:,} bytes that can be written",
                "name a folder on a larger disk, or keep fewer tokens",
            )  # fmt: skip
        size = tokens * token // dtype.itemsize
        self._file = file
        flat = torch.from_file(str(file.path), shared=True, size=size, dtype=dtype)
        self._x = flat.view(tokens, *shape)

    def read(self) -> Tensor:
        """Return a view of the map, whose pages are read when they are used; a copy on a GPU."""
        if self._x is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return self._x[: self._m].permute(1, 2, 0, 3).to(device=self._device)

    def empty(self) -> Mapped:
        """Return another in the same folder."""
        return Mapped(self.folder)

    def crop(self, m: int) -> None:
        """Drop the end; the file stays as long as it is."""
        self._m = min(self._m, m)

    def reorder(self, rows: Tensor) -> None:
        """Select rows, into a new file."""
        if self._x is not None:
            x = take_batch(self.read(), rows)
            other = self.empty()
            other.append(x)
            # The file of what was goes with its object.
            self._file, self._x, self._m = other._file, other._x, other._m
            self._written, self._lent, self._forks = other._written, 0, other._forks

    def __deepcopy__(self, memo: dict[int, Any]) -> Mapped:
        made = self.empty()
        if self._x is not None:
            made.append(self.read())
        return made

    @property
    def nbytes(self) -> int:
        """Nothing that the system cannot take back."""
        return 0

    @property
    def file_bytes(self) -> int:
        """Bytes of the file, room to grow included."""
        return 0 if self._x is None else self._x.nbytes

    def state(self) -> dict[str, Any]:
        """Return a copy of the tokens."""
        return {"x": None if self._x is None else self.read().clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Write the tokens to a file."""
        if state["x"] is not None:
            self.append(state["x"])
