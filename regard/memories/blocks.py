"""Keys and values of texts that are reused: encoded once, stored by name."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.core.errors import ValueRangeError, fail
from regard.core.files import FileError, FileKind, read_packed, reading, write_packed

BLOCK = FileKind(
    "regard-block", 2, "keys and values of one text", "delete it: the text is encoded again"
)


@dataclass(frozen=True, eq=False)
class TextBlock:
    """Keys and values of one text, encoded alone: k [1, g, m, d], v [1, g, m, e] by layer.

    Positions are 0, 1, 2, ...; keys must be rotated to other positions.
    """

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.k[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(x.untyped_storage().nbytes() for x in (*self.k, *self.v))


class TextBlocks:
    """Text blocks by name, of the model that `of` names.

    Past `limit` bytes the least recently used block is dropped. With a `folder`, each block is
    also a file, from which it is loaded again.

    >>> import torch
    >>> blocks, x = TextBlocks(limit=100), (torch.ones(1, 1, 3, 4),)
    >>> for name in "ab":
    ...     blocks.keep(name, TextBlock(x, tuple(t.clone() for t in x)))
    >>> blocks.nbytes, blocks.find("a") is None, len(blocks.find("b"))
    (96, True, 3)
    """

    def __init__(
        self, of: str = "", *, limit: int | None = None, folder: str | Path | None = None
    ) -> None:
        if limit is not None and limit < 1:
            fail(ValueRangeError, "limit", limit, "bytes, at least 1", "leave it out for no limit")
        self.of, self.limit = of, limit
        self.folder = None if folder is None else Path(folder)
        self._held: OrderedDict[str, TextBlock] = OrderedDict()

    def name(self, tokens: Sequence[int]) -> str:
        """Name a block by the model and the tokens."""
        text = f"{self.of} {','.join(map(str, tokens))}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: str) -> bool:
        return name in self._held or (self.folder is not None and self._file(name).exists())

    def find(self, name: str) -> TextBlock | None:
        """Return a block, from memory or from the folder; None where there is none."""
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        if self.folder is None or not self._file(name).exists():
            return None
        block = self._made(read_packed(self._file(name), BLOCK), self._file(name))
        self._hold(name, block)
        return block

    def keep(self, name: str, block: TextBlock) -> None:
        """Add a block; least recently used ones may be dropped for it."""
        if self.folder is not None:
            content = {"of": self.of, "k": list(block.k), "v": list(block.v)}
            write_packed(self._file(name), content, BLOCK)
        self._hold(name, block)

    def _hold(self, name: str, block: TextBlock) -> None:
        self._held[name] = block
        self._held.move_to_end(name)
        while self.limit is not None and self.nbytes > self.limit and len(self._held) > 1:
            self._held.popitem(last=False)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.block"

    def _made(self, content: dict[str, Any], path: object) -> TextBlock:
        with reading(path, BLOCK):
            if content["of"] != self.of:
                fail(
                    FileError, "path", f"{path}, of another model", f"one of {self.of}",
                    "encode the texts again, or load that model",
                )  # fmt: skip
            block = TextBlock(tuple(content["k"]), tuple(content["v"]))
            if not block.k or {x.dim() for x in (*block.k, *block.v)} != {4}:
                BLOCK.bad(path, "a file without keys")
        return block

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks in memory."""
        return sum(block.nbytes for block in self._held.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the files in the folder."""
        files = [] if self.folder is None else list(self.folder.glob("*.block"))
        return sum(file.stat().st_size for file in files)

    def state(self) -> dict[str, Any]:
        """Return the state for a file."""
        held = {name: {"k": list(b.k), "v": list(b.v)} for name, b in self._held.items()}
        return {"of": self.of, "blocks": held}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from a file, in addition to the blocks already here."""
        for name, content in state["blocks"].items():
            self._hold(name, self._made({"of": state["of"], **content}, "the file"))
