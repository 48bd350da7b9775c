"""Keep what is broken in one token out of the tokens before it, whatever the form of the scan.

A chunk is a matrix product over all its pairs, with zeros for the later ones, and zero times NaN is
NaN. So a token whose key, value or writing strength is not finite is taken out before the scan, and
the outputs that read it are NaN afterwards: its own, and all after it up to the next reset.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.readable import can_be_read
from regard.core.scan.scan_inputs import ScanTokens


class Spoiled(NamedTuple):
    """Outputs `rows [b, h, n]`, and memories `last [b, h]`, that hold a broken token."""

    rows: Tensor
    last: Tensor

    def fill(self, out: Tensor, *memories: Tensor) -> tuple[Tensor, ...]:
        """Return out `[b, h, n, e]` and memories `[b, h, ...]` with NaN where they are spoiled."""
        held = (x.masked_fill(_wide(self.last, x), torch.nan) for x in memories)
        return out.masked_fill(self.rows[..., None], torch.nan), *held


def contain(
    tokens: ScanTokens,
    memories: tuple[Tensor, ...],
    *,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[ScanTokens, tuple[Tensor, ...], Spoiled | None]:
    """Take broken tokens and memories `[b, h, ...]` out of a scan, and note who reads them.

    One sum over keys and values tells whether there are any. Nothing is looked at where no token
    is before another (one token), in compiled code, under `vmap` and on `meta`. What `keep [b, n]`
    leaves out spoils nothing.

    >>> from regard.core.scan.scan_inputs import prepare
    >>> x = torch.tensor([1.0, torch.nan, 1.0]).view(1, 1, 3, 1)
    >>> tokens, _, spoiled = contain(prepare(x, x, x), ())
    >>> tokens.v.flatten().tolist(), spoiled.rows.flatten().tolist()
    ([1.0, 0.0, 1.0], [False, True, True])
    """
    k, v = tokens.k.detach(), tokens.v.detach()
    parts = [k, v, *(x.detach() for x in memories)]
    if tokens.beta is not None:
        parts.append(tokens.beta.detach())
    if (k.shape[2] == 1 and reset is None) or not some_broken(*parts):
        return tokens, memories, None
    bad = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
    if tokens.beta is not None:
        bad |= ~tokens.beta.detach().isfinite()
    entered = bad.new_zeros(bad.shape[:2])
    for x in memories:
        entered |= ~x.detach().isfinite().flatten(2).all(-1)
    return _without(tokens, bad), _emptied(memories, entered), readers(bad, entered, keep, reset)


def readers(
    bad: Tensor, entered: Tensor, keep: Tensor | None = None, reset: Tensor | None = None
) -> Spoiled:
    """Return who reads broken tokens `[b, h, n]`, and broken memories `[b, h]` that enter.

    >>> bad, entered = torch.tensor([[[True, False, False]]]), torch.tensor([[False]])
    >>> readers(bad, entered, reset=torch.tensor([[False, False, True]])).rows.flatten().tolist()
    [True, True, False]
    """
    n = bad.shape[2]
    if keep is not None:
        bad = bad & keep[:, None]
    at = torch.arange(n + 1, device=bad.device)  # 0 is the memory that enters
    broken = torch.cat((entered[..., None], bad), dim=2)
    newest = torch.where(broken, at, -1).cummax(2).values
    first = newest.new_zeros(bad.shape[0], 1, n + 1)
    if reset is not None:
        first[:, 0, 1:] = torch.where(reset, at[1:], 0).cummax(1).values
    spoiled = newest >= first
    return Spoiled(spoiled[..., 1:], spoiled[..., -1])


def cleared(k: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return k and v `[b, g, m, .]` with zeros for keys that `keep [b, m]` leaves out.

    Values are copied only where one of them is not finite.

    >>> bad = torch.tensor([1.0, torch.inf]).view(1, 1, 2, 1)
    >>> [x.flatten().tolist() for x in cleared(bad, bad, torch.tensor([[True, False]]))]
    [[1.0, 0.0], [1.0, 0.0]]
    """
    gone = ~keep[:, None, :, None]
    if some_broken(v):
        v = v.masked_fill(gone, 0.0)
    return k.masked_fill(gone, 0.0), v


def some_broken(*tensors: Tensor) -> bool:
    """Return whether a look at the sums of tensors finds a NaN or an infinity, where it may look.

    >>> some_broken(torch.ones(2), torch.tensor([1.0, torch.nan]))
    True
    """
    if not all(map(can_be_read, tensors)):
        return False
    return not bool(torch.stack([x.detach().sum() for x in tensors]).sum().isfinite())


def _without(tokens: ScanTokens, bad: Tensor) -> ScanTokens:
    gone = bad[..., None]
    beta = None if tokens.beta is None else tokens.beta.masked_fill(bad, 0.0)
    k, v = tokens.k.masked_fill(gone, 0.0), tokens.v.masked_fill(gone, 0.0)
    return replace(tokens, k=k, v=v, beta=beta)


def _emptied(memories: tuple[Tensor, ...], entered: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.masked_fill(_wide(entered, x), 0.0) for x in memories)


def _wide(mark: Tensor, x: Tensor) -> Tensor:
    """Lay a mark [b, h] out for x [b, h, ...]."""
    return mark.reshape(*mark.shape, *(1,) * (x.dim() - 2))
