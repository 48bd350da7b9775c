"""vLLM's own kernel equals the reference, over its own cache, in every type (`make vllm`)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: `make vllm`")
pytest.importorskip("vllm._C")

from vllm import _custom_ops as ops

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Causal, Everything
from regard.run.plan import densified
from regard.run.runner import run
from regard.serving.vllm.cache_layout import ServerPages, layout_of
from regard.serving.vllm.cpu_kernel import CpuKernel, isa_of

H, G, PAGES = 6, 3, 8
KINDS = [
    (dtype, block, d)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for block in (32, 128)
    for d in (64, 80, 128)
]


def cached(
    dtype: torch.dtype, block: int, d: int, m: int, rest: float = torch.nan
) -> tuple[ServerPages, torch.Tensor]:
    """Keys that vLLM wrote into its cache in its own order, and the same as given [2, m, G, d]."""
    isa, layout = isa_of(dtype, block, d), layout_of(isa_of(dtype, block, d), block, d, dtype)
    assert layout is not None
    cache = torch.full((PAGES, G, block, 2 * d), rest, dtype=dtype)
    k, v = cache.view(PAGES, G, 2 * block, d).chunk(2, dim=2)
    table = torch.randperm(PAGES)[: -(-m // block)].int()
    at = torch.arange(m)
    both = torch.randn(2, m, G, d).to(dtype)
    slots = table.long()[at // block] * block + at % block
    ops.cpu_attn_reshape_and_cache(*both, k, v, slots, isa)
    lengths = torch.tensor([[m]])
    return ServerPages(k, v, table[None, None], lengths, longest=m, layout=layout), both


@pytest.mark.parametrize(("dtype", "block", "d"), KINDS)
def test_what_vllm_wrote_is_read(dtype: torch.dtype, block: int, d: int) -> None:
    keys, (k, v) = cached(dtype, block, d, 3 * block + 7)
    dense = keys.dense()
    assert torch.equal(dense.k[0], k.transpose(0, 1))
    assert torch.equal(dense.v[0], v.transpose(0, 1))


@pytest.mark.parametrize(("dtype", "block", "d"), KINDS)
def test_the_kernel_equals_the_reference(dtype: torch.dtype, block: int, d: int) -> None:
    m, rule = 3 * block + 7, Rule(Everything(), Dot(d**-0.5))
    # The kernel multiplies what is behind the end by 0: it may hold any number.
    keys, _ = cached(dtype, block, d, m, rest=99.0)
    q = torch.randn(1, H, 1, d).to(dtype)
    pages = torch.stack([torch.tensor([i, (i + 1) % 3, 3]).sort().values for i in range(G)])
    slots = (pages[None, :, :, None] * block + torch.arange(block)).flatten(2)
    chosen = keys.take(slots[..., : m - block], full=True)
    many = Rule(Causal(), Dot(d**-0.5), offset=m - 9)
    for call in (
        Call(q, keys, rule),
        Call(q, chosen, rule),
        Call(torch.randn(1, H, 9, d).to(dtype), keys, many),
    ):
        assert CpuKernel().can(call)
        got = CpuKernel().out(call).double()
        dense = densified(call)
        exact = Call.of(call.q.double(), dense.k.double(), dense.v.double(), call.rule)
        want = run(exact, executor="reference").out
        # What a kernel of this type may lose: twice what PyTorch's own does.
        own = run(dense, executor="fused").out.double()
        least = 2e-6 if dtype == torch.float32 else 4e-3
        assert (got - want).abs().max() <= 2 * (own - want).abs().max() + least
