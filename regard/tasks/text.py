"""Character-level language modeling on Python's standard library, which every machine has."""

from __future__ import annotations

import functools
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regard.core.errors import RuleError, fail
from regard.tasks.base import Batch, Kind, Task, Tokens, integers, need_integer
from regard.tasks.pixels import PARTS
from regard.tasks.registry import register

# Old modules that change little; the last of them are held out.
SOURCES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "csv", "difflib", "dis",
    "doctest", "ftplib", "gettext", "heapq", "inspect", "optparse", "pdb", "pickle", "shutil",
    "statistics", "string", "tarfile", "textwrap", "threading", "tokenize", "traceback", "uuid",
)  # fmt: skip
HELD_OUT = 4


@functools.cache
def _codes(part: str) -> Tensor:
    """Read the text of a part as ASCII codes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    names = SOURCES[:-HELD_OUT] if part == "train" else SOURCES[-HELD_OUT:]
    texts = [p.read_text(encoding="utf-8", errors="ignore")
             for p in (library / f"{name}.py" for name in names) if p.exists()]  # fmt: skip
    if not texts:
        fail(
            RuleError, "characters", f"no sources in {library}", "the standard library's sources",
            "install Python with them",
        )  # fmt: skip
    data = "\n".join(texts).encode("ascii", "ignore")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


@functools.cache
def _ambiguous(part: str, length: int) -> Tensor:
    """Say which rows of `length` characters occur again with another character after them.

    Rows are told apart by a sum of their characters times powers of a number, modulo 2^64.
    """
    codes = _codes(part)
    count = len(codes) - length
    powers = torch.full((length,), 6364136223846793005).cumprod(0)
    row = sum((codes[i : i + count] * powers[i] for i in range(length)), torch.zeros(count).long())
    _, which = row.unique(return_inverse=True)
    least, most = (
        torch.zeros(int(which.max()) + 1, dtype=torch.long).scatter_reduce(
            0, which, codes[length:], way, include_self=False
        )
        for way in ("amin", "amax")
    )
    return (least < most)[which]


@register("characters")
@dataclass(frozen=True, kw_only=True)
class Characters(Task):
    """Predict the next character of Python source, which holds code and prose.

    Tested on held-out modules. The oracle looks the text up: 100% is out of reach for a model, and
    scores compare how fast layers learn. The last character of a row that the text continues in
    two ways is not asked.

    >>> Characters(length=32).batch(2).x.shape
    torch.Size([2, 32])
    """

    length: int = 128
    part: str = "train"

    def __post_init__(self) -> None:
        need_integer("length", self.length, 2)
        if self.part not in PARTS:
            fail(RuleError, "part", repr(self.part), f"one of {PARTS}", "leave it out to train")

    @property
    def inputs(self) -> Kind:
        return Tokens(128)

    @property
    def chance(self) -> float:
        share = torch.bincount(_codes(self.part), minlength=128).double()
        return float((share / share.sum()).square().sum())

    def draw(self, size: int, random: torch.Generator) -> Batch:
        codes = _codes(self.part)
        starts = integers(0, len(codes) - self.length, (size, 1), random)
        rows = codes[starts + torch.arange(self.length + 1)]
        asked = torch.ones(size, self.length, dtype=torch.bool)
        asked[:, -1] = ~_ambiguous(self.part, self.length)[starts[:, 0]]
        return Batch(rows[:, :-1], rows[:, 1:], asked)

    def oracle(self, batch: Batch) -> Tensor:
        text = bytes(_codes(self.part).tolist())
        last = []
        for row in batch.x.tolist():
            at = text.index(bytes(row)) + self.length
            last.append(text[at])
        return torch.cat((batch.x[:, 1:], torch.tensor(last)[:, None]), 1)

    def tests(self) -> dict[str, Task]:
        return {self.name: replace(self, part="held out")}
