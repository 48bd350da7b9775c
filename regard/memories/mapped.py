"""Tokens in a memory-mapped file."""

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

# A file grows by at least this many bytes.
STEP = 1 << 16


class DiskError(FileError):
    """A file could not be extended or read."""


class Mapped(TokenStore):
    """Tokens in a file of their own in `folder` (the system's, where none is named).

    The file is removed with the store, and by later processes if this one is killed. Space is
    allocated before it is written, so that a full disk is an error here and not a crash later.

    After a fork parent and child read one file, with the tokens from before the fork; the one that
    would overwrite them moves to a file of its own first.

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
        # Tokens written so far, and how many of them another process may read.
        self._written = self._lent = 0
        self._forks = forks()
        # The device of the tokens, to which they are read.
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return self._m

    def append(self, x: Tensor) -> None:
        """Write after the last token."""
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
        """Return whether another process may read what the next token would overwrite."""
        if forks() != self._forks:
            self._lent, self._forks = self._written, forks()
        return self._file is not None and (
            self._file.owner != os.getpid() or self._m < self._lent
        )  # fmt: skip

    def _move(self) -> None:
        """Move to a file of our own."""
        assert self._x is not None
        held, self._file = self._x[: self._m], None
        self._map(self._m, tuple(held.shape[1:]), held.dtype)
        self._x[: self._m] = held
        self._written, self._lent = self._m, 0

    def _map(self, tokens: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Extend the file, and map it again."""
        token = shape[0] * shape[1] * shape[2] * dtype.itemsize
        tokens = tokens + max(tokens // 2, STEP // token + 1)
        try:
            file = KeyFile(self.folder) if self._file is None else self._file
            handle = os.open(file.path, os.O_RDWR)
            try:
                # On a full disk this raises, while writing to the map would kill the process.
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
        """Return a view of the map, whose pages are read on use; a copy for a GPU."""
        if self._x is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        return self._x[: self._m].permute(1, 2, 0, 3).to(device=self._device)

    def empty(self) -> Mapped:
        """Return another in the same folder."""
        return Mapped(self.folder)

    def crop(self, m: int) -> None:
        """Drop the end; the file keeps its size."""
        self._m = min(self._m, m)

    def reorder(self, rows: Tensor) -> None:
        """Select rows, into a new file."""
        if self._x is not None:
            x = take_batch(self.read(), rows)
            other = self.empty()
            other.append(x)
            # The old file is removed with its object.
            self._file, self._x, self._m = other._file, other._x, other._m
            self._written, self._lent, self._forks = other._written, 0, other._forks

    def __deepcopy__(self, memo: dict[int, Any]) -> Mapped:
        made = self.empty()
        if self._x is not None:
            made.append(self.read())
        return made

    @property
    def nbytes(self) -> int:
        """Zero: the system can reclaim all mapped pages."""
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
