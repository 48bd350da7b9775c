"""Decode over pages of keys, by a kernel that reads them where they are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.key_forms import Paged
from regard.core.partial import Partial
from regard.run.bands import FAR, bands_of_heads
from regard.run.counting import count
from regard.run.executor import Answer, No, Yes
from regard.run.kernels import DecodeKernel, scale_of, too_many, why_no_kernel
from regard.run.triton.executor import band_numbers


class PagedDecode(DecodeKernel):
    """A Triton kernel for few queries over pages: causal bands with sinks, or all keys of a row."""

    name = "paged"
    reads: ClassVar[frozenset[str]] = frozenset({"paged"})

    def can(self, call: Call) -> Answer:
        """Softmax of a scaled product under a causal band, or over all keys."""
        keys = call.keys
        if not isinstance(keys, Paged):
            return No(f"reads paged keys, not {keys.form}")
        reason = why_no_kernel(call) or too_many(call)
        if reason:
            return No(reason)
        if not keys.real:
            return No("some slots of the pages are empty")
        if call.rule.position_free:
            return Yes()
        if keys.at is not None:
            return No("keys have positions of their own")
        if keys.table.shape[1] > 1:
            return No("heads have pages of their own, and bands are counted by row")
        bands = bands_of_heads(call.rule.support)
        if bands is None or any(b.high != 0 for b in bands):
            return No(f"{call.rule.support} is no causal band with sinks")
        at = call.q_positions
        if at is not None and call.n > 1 and not bool((at.diff(dim=-1) == 1).all()):
            return No("queries of a row are not consecutive")
        return Yes()

    def run(self, call: Call) -> Partial:
        """Read the pages."""
        return self.split(call, None)

    def split(self, call: Call, splits: int | None) -> Partial:
        """Read the pages of each row in so many pieces."""
        from regard.run.triton.decode import decode  # imports triton

        keys = call.keys
        assert isinstance(keys, Paged)
        b, h, n, d = call.q.shape
        t = keys.table.shape[1]
        # A head with pages of its own is a row with one key head.
        q = call.q if t == 1 else call.q.reshape(b * t, h // t, n, d)
        lengths = keys.lengths.flatten().to(torch.int32)
        window = sinks = None
        if call.rule.position_free:
            first = lengths
        else:
            first = _first(call).to(torch.int32)
            window, sinks = band_numbers(call.rule.support, h, call.q.device)
        kept = keys.count if keys.lengths.device.type == "cpu" else float(keys.m)
        size = call.q.element_size()
        count(b * h * n * kept, d + call.e, size * b * call.g * kept * (d + call.e))
        out, lse = decode(
            q, keys.k, keys.v, scale=scale_of(call), first=first, lengths=lengths,
            window=window, sinks=sinks, table=keys.table.flatten(0, 1).to(torch.int32),
            splits=splits,
        )  # fmt: skip
        assert lse is not None
        return Partial(out.view(b, h, n, -1), lse.view(b, h, n))


def _first(call: Call) -> Tensor:
    """Position of the first query of each row, [b]."""
    at = call.q_positions
    if at is None:
        return torch.full((call.b,), call.rule.offset, device=call.q.device)
    at = at if at.dim() == 2 else at[None]
    return (at[:, 0] + call.rule.offset).expand(call.b)


__all__ = ["FAR", "PagedDecode"]
