"""vLLM's own kernel for CPUs, as an executor: it reads the pages of its cache where they are."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.partial import Partial
from regard.core.score.matches import DotMatch
from regard.core.support import Causal
from regard.core.weigh import Softmax
from regard.run.counting import count
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.kernels import scale_of
from regard.run.plan import densified
from regard.run.runner import partial_of
from regard.serving.vllm.cache_layout import ServerPages

KERNEL = "vllm"


class CpuKernel(Executor):
    """vLLM's attention of one request: all of its pages, or pages of each head."""

    name = KERNEL
    reads: ClassVar[frozenset[str]] = frozenset({ServerPages.form})

    def can(self, call: Call) -> Answer:
        """Softmax of a scaled product, over all keys or the past."""
        keys, rule = call.keys, call.rule
        if not isinstance(keys, ServerPages):
            return No(f"reads pages of vLLM's cache, not {keys.form}")
        if type(rule.weigh) is not Softmax or rule.weigh.has_sink:
            return No(f"{rule.weigh} is no plain softmax")
        if not isinstance(rule.score.match, DotMatch) or rule.score.steps:
            return No(f"{rule.score} is no scaled product")
        if call.dropout or call.needs_grad:
            return No("it serves: no weights are dropped, and no gradients made")
        if keys.at is not None or call.q_positions is not None or call.b != 1:
            return No("it reads one request, whose tokens are at 0, 1, 2, ...")
        if call.n == 1 and rule.position_free:
            return Yes()
        if keys.table.shape[1] > 1:
            return No("heads have pages of their own, and their tokens are anywhere")
        if rule.support != Causal() or rule.offset != call.m - call.n:
            return No(f"{rule.support} from {rule.offset} is not the past of the newest tokens")
        return Yes()

    def run(self, call: Call) -> Partial:
        """Return the log-sum-exp too, which the kernel does not: by another executor."""
        return partial_of(densified(call))

    def out(self, call: Call) -> Tensor:
        """Let vLLM attend: heads with pages of their own are requests of one key head."""
        keys = call.keys
        assert isinstance(keys, ServerPages)
        (_, h, n, d), t, m = call.q.shape, keys.table.shape[1], keys.m
        # The kernel takes rows of heads as they follow one another in memory.
        query = call.q[0].transpose(0, 1).reshape(n * t, h // t, d).contiguous()
        moved = call.q.element_size() * call.g * m * (d + call.e)
        count(h * n * (m - (0 if call.n == 1 else (n - 1) / 2)), d + call.e, moved)
        out = attend_pages(query, keys.k, keys.v, keys.table[0].int(), m, scale_of(call))
        return out.view(n, h, d).transpose(0, 1)[None]

    def cost(self, call: Call) -> Cost:
        """Every key is read once."""
        pairs = float(call.h * call.n * call.m)
        moved = call.q.element_size() * call.g * call.m * (call.d + call.e)
        return Cost(2.0 * pairs * (call.d + call.e), moved)


def attend_pages(
    query: Tensor, k: Tensor, v: Tensor, table: Tensor, m: int, scale: float
) -> Tensor:
    """Return what vLLM's kernel makes of queries [tokens, h, d] over pages [pages, g, block, d].

    Each row of `table` [rows, pages] has m tokens, of which the newest ask: tokens / rows of them.
    """
    from vllm import _custom_ops as ops

    tokens, h, d = query.shape
    rows, (_, g, block, _) = len(table), k.shape
    starts, held, plan = _schedule(rows, tokens // rows, m, h, g, d, query.dtype, block)
    out = torch.empty_like(query)
    ops.cpu_attention_with_kv_cache(
        query=query, key_cache=k, value_cache=v, output=out, query_start_loc=starts, seq_lens=held,
        scale=scale, causal=True, alibi_slopes=None, sliding_window=-1, block_table=table,
        softcap=0, scheduler_metadata=plan, s_aux=None,
    )  # fmt: skip
    return out


@lru_cache(maxsize=256)
def _schedule(
    rows: int, n: int, m: int, h: int, g: int, d: int, dtype: torch.dtype, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Let vLLM plan rows of m tokens, of which n ask; all layers of a step share a plan."""
    from vllm import _custom_ops as ops

    starts = torch.arange(rows + 1, dtype=torch.int32) * n
    held = torch.full((rows,), m, dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=rows, num_heads=h, num_kv_heads=g, head_dim=d, seq_lens=held, dtype=dtype,
        query_start_loc=starts, causal=True, sliding_window_size=-1, isa=isa_of(dtype, block, d),
        enable_kv_split=True,
    )  # fmt: skip
    return starts, held, plan


@lru_cache(maxsize=64)
def isa_of(dtype: torch.dtype, block: int, d: int) -> str:
    """Return vLLM's name for the kind of processor whose kernel it takes."""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    found: str = _get_attn_isa(dtype, block, d)
    return found
