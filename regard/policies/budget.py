"""How much may be kept: a share, a number of tokens, or bytes over all layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of

# As the standards have them (IEC 80000-13): kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.
UNITS = {"B": 1} | {
    f"{prefix}{binary}B": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("KMGT", 1)
    for binary in ("", "i")
}
_NUMBER = r"([0-9]*\.?[0-9]+)\s*"
_BYTES = re.compile(_NUMBER + "((?:[KMGT]i?)?B)(?:ytes?)?", re.IGNORECASE)
_SHARE = re.compile(_NUMBER + "%")
_TOKENS = re.compile(r"([0-9]+)\s*tok(?:ens?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A share of the tokens seen, a number of tokens, or bytes for one row over all layers.

    A float is a share, an int a number of tokens; a string has its unit: `25%`, `256tok`, `4MiB`
    (of 1024 x 1024 bytes), `4MB` (of 1000 x 1000).

    >>> Budget.of(0.25), Budget.of(512), Budget.of("2 MiB")
    (Budget(share=0.25), Budget(tokens=512), Budget(bytes=2097152))
    >>> Budget.of("5 GiB").bytes, Budget.of("5 GB").bytes
    (5368709120, 5000000000)
    >>> Budget.of("25%") == Budget.of(0.25), Budget.of("256tok") == Budget.of(256)
    (True, True)
    """

    share: float | None = None
    tokens: int | None = None
    bytes: int | None = None

    @staticmethod
    def of(keep: Any) -> Budget:
        """Parse a budget: 0.25 or "25%", 512 or "512tok", or "2 MiB"."""
        if isinstance(keep, Budget):
            return keep
        if isinstance(keep, bool):
            fail(ValueRangeError, "keep", keep, "a share, tokens or bytes", "pass keep=0.25, say")
        if isinstance(keep, float) and 0 < keep <= 1:
            return Budget(share=keep)
        if isinstance(keep, int) and keep >= 1:
            return Budget(tokens=keep)
        if isinstance(keep, str):
            text = keep.strip()
            if (found := _BYTES.fullmatch(text)) and float(found[1]) > 0:
                unit = found[2].upper().replace("I", "i")
                return Budget(bytes=round(float(found[1]) * UNITS[unit]))
            if (found := _SHARE.fullmatch(text)) and 0 < float(found[1]) <= 100:
                return Budget(share=float(found[1]) / 100)
            if (found := _TOKENS.fullmatch(text)) and int(found[1]) > 0:
                return Budget(tokens=int(found[1]))
        return fail(
            ValueRangeError,
            "keep",
            shape_of(keep),
            'a share (0.25 or "25%"), a number of tokens (256 or "256tok"), or bytes ("4MiB")',
            _meant(keep),
        )

    @property
    def label(self) -> str:
        """Write the budget with its unit, as `of` reads it.

        >>> [Budget.of(x).label for x in (1, 1.0, 0.125, "4 MiB", "4 MB", "1500 B")]
        ['1tok', '100%', '12.5%', '4MiB', '4MB', '1500B']
        """
        if self.share is not None:
            return f"{100 * self.share:.6g}%"
        if self.tokens is not None:
            return f"{self.tokens}tok"
        size = self.bytes or 0
        unit = max((u for u, one in UNITS.items() if size % one == 0), key=lambda u: UNITS[u])
        return f"{size // UNITS[unit]}{unit}"

    def need_share(self, of: str) -> float:
        """Return the share; raise for another kind of budget, saying what it is a share `of`."""
        if self.share is None:
            fail(CapabilityError, "keep", f"{self}", f"a share of {of}", "pass keep=0.5, say")
        return self.share

    @cached_property
    def whole(self) -> bool:
        """Whether everything may stay."""
        return self.share == 1.0

    def of_rows(self, real: Tensor, token_bytes: float) -> Tensor:
        """Return how many of `real` tokens [b] a head may keep on average, [b].

        `token_bytes` is what one token costs over all layers and heads. At least one token stays.
        """
        if self.share is not None:
            kept = torch.ceil(real.double() * self.share - 1e-9).long()
        else:
            kept = torch.full_like(real, self._fixed(token_bytes))
        return kept.clamp(min=1).minimum(real)

    def of_row(self, real: int, token_bytes: float) -> int:
        """Return the tokens that a head may keep of one row's `real` ones.

        >>> Budget.of(0.25).of_row(10, 1.0), Budget.of(512).of_row(10, 1.0)
        (3, 10)
        """
        share = self.share
        kept = self._fixed(token_bytes) if share is None else ceil(real * share - 1e-9)
        return min(max(kept, 1), real)

    def _fixed(self, token_bytes: float) -> int:
        """Return a budget of tokens or bytes as tokens."""
        if self.tokens is not None:
            return self.tokens
        return int((self.bytes or 0) / max(token_bytes, 1.0))

    def __repr__(self) -> str:
        parts = {"share": self.share, "tokens": self.tokens, "bytes": self.bytes}
        return f"Budget({', '.join(f'{k}={x}' for k, x in parts.items() if x is not None)})"


def _meant(keep: Any) -> str:
    """Suggest what to write instead; for a number without a unit, every reading of it."""
    bare = re.fullmatch(r"[0-9]*\.?[0-9]+", keep.strip()) if isinstance(keep, str) else None
    if bare is None:
        return "pass keep=0.25, keep=256 or keep='4MiB'"
    number = bare[0]
    if "." in number and 0 < float(number) <= 1:
        return f"write {Budget(share=float(number)).label} for a share"
    if "." in number or not int(number):
        return "write 25%, 256tok or 4MiB"
    share = "100% for all" if int(number) == 1 else f"{number}% for a share"
    return f"write {number}tok for tokens, {share}, or {number}MiB for bytes"
