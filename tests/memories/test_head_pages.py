"""Heads in pages hold what heads in groups hold, and are attended to alike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RegardError
from regard.core.rule import Rule
from regard.memories import HeadPages, Kept
from regard.run.reference import Reference
from regard.run.runner import run
from regard.run.triton.availability import why_not_here

G, D = 3, 8


def slots_of(memory: Kept, share: list[float]) -> Tensor:
    """Slots of a share of each head's keys, ragged."""
    at = memory.positions
    b, g, m = at.shape
    order = torch.rand(b, g, m).masked_fill(at < 0, 2.0).argsort(-1)
    count = torch.tensor(share)[None, :, None] * (at >= 0).sum(-1, keepdim=True)
    return torch.where(torch.arange(m) < count.long().clamp(min=1), order, -1)


def same(pages: HeadPages, kept: Kept) -> None:
    a, b = pages.read(), kept.read()
    assert pages.seen == kept.seen
    assert torch.equal(pages.counts, kept.counts)
    for row in range(a.k.shape[0]):
        for head in range(G):
            found = []
            for read in (a, b):
                at = read.positions
                at = torch.arange(read.k.shape[2]) if at is None else at[row, head]
                real = at >= 0
                found.append((at[real], read.k[row, head, real], read.v[row, head, real]))
            assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@given(
    size=st.integers(1, 6), n=st.integers(1, 40), after=st.lists(st.integers(1, 3), max_size=8),
    share=st.lists(st.floats(0, 1), min_size=G, max_size=G), pad=st.integers(0, 5),
    back=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_pages_are_groups_of_heads(
    size: int, n: int, after: list[int], share: list[float], pad: int, back: int, seed: int
) -> None:
    torch.manual_seed(seed)
    pages, kept = HeadPages(size), Kept()
    keep = torch.ones(2, n, dtype=torch.bool)
    keep[0, : min(pad, n - 1)] = False
    k, v = torch.randn(2, 2, G, n, D)
    for memory in (pages, kept):
        memory.extend(k, v, keep)
    slots = slots_of(kept, share)
    for memory in (pages, kept):
        memory.choose(slots)
    same(pages, kept)
    for m in after:
        k, v = torch.randn(2, 2, G, m, D)
        for memory in (pages, kept):
            memory.extend(k, v)
    same(pages, kept)
    for memory in (pages, kept):
        memory.reorder(torch.tensor([1, 0, 1]))
        memory.crop(memory.seen - min(back, sum(after)))
    same(pages, kept)
    q = torch.randn(3, 2 * G, 1, D)
    read = kept.read()
    call = Call.of(q, read.k, read.v, Rule(), k_positions=read.positions)
    found, wanted = run(Call(q, pages.keys()), ("lse",)), Reference().run(call)
    torch.testing.assert_close(found.out, wanted.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.lse, wanted.lse, atol=1e-5, rtol=1e-5)


def test_the_kernel_reads_the_same_pages() -> None:
    if why_not_here(torch.device("cpu")):
        pytest.skip(f"kernels cannot run: {why_not_here(torch.device('cpu'))}")
    torch.manual_seed(0)
    pages = HeadPages(16)
    k, v = torch.randn(2, 1, G, 100, 16)
    pages.extend(k, v)
    slots = torch.arange(100).expand(1, G, -1).clone()
    for head, count in enumerate((5, 64, 33)):
        slots[0, head, count:] = -1
    pages.choose(slots)
    call = Call(torch.randn(1, 2 * G, 1, 16), pages.keys())
    by_kernel, gathered = run(call, ("lse",), "paged"), run(call, ("lse",), "fused")
    torch.testing.assert_close(by_kernel.out, gathered.out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_kernel.lse, gathered.lse, atol=1e-4, rtol=1e-4)


def test_ragged_heads_cost_their_keys_and_little_more() -> None:
    pages, n = HeadPages(), 4096
    k, v = torch.randn(2, 1, 4, n, 64)
    pages.extend(k, v)
    counts = (400, 900, 1500, 2200)
    slots = torch.arange(n).expand(1, 4, -1).clone()
    for head, count in enumerate(counts):
        slots[0, head, count:] = -1
    pages.choose(slots)
    assert pages.nbytes <= 1.05 * sum(counts) * 2 * 64 * 4


def test_what_does_not_fit_is_refused() -> None:
    pages = HeadPages()
    with pytest.raises(RegardError, match="nothing kept"):
        pages.read()
    pages.extend(*torch.randn(2, 1, 2, 5, 4))
    with pytest.raises(RegardError, match="batch and heads"):
        pages.extend(*torch.randn(2, 1, 3, 5, 4))
    with pytest.raises(RegardError, match="slots"):
        pages.choose(torch.zeros(1, 3, 2, dtype=torch.long))
    with pytest.raises(RegardError, match="pages of 16"):
        HeadPages(8).restore(pages.state())
