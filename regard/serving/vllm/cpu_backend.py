"""Attention on a CPU: vLLM's own for all that is not asked otherwise, in the one cache of both.

A batch of which no request asks for anything is vLLM's alone. Where some ask, these are run through
the one runner, over pages of vLLM's cache as its kernel lays them out, and the rest by vLLM. Models
that its kernel does not run (heads of 24, say) are served by Regard altogether.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from regard.serving.vllm.backend import OwnParts, RowAttention, pools, write_keys
from regard.serving.vllm.batch_rows import BatchRow, causal_alone, rows_of
from regard.serving.vllm.cache_layout import CacheLayout, layout_of
from regard.serving.vllm.hooks import current


@dataclass
class CpuBatch:
    """What one step computes: vLLM's own part, if any, and the rows that Regard runs."""

    rows: list[BatchRow]
    # Of vLLM's own builder; None where Regard runs all rows.
    own: Any = None
    layout: CacheLayout | None = None

    @property
    def causal(self) -> bool:
        """Whether tokens attend to the past alone; vLLM asks."""
        return self.own is None or bool(self.own.causal)


class RegardCpuBuilder(CPUAttentionMetadataBuilder):
    """Reads a batch once for all layers that share a block table."""

    def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        decodes = not (self.is_encoder_only_attention or self.is_cross_attention)
        self.takes = not decodes or takes(self.head_dim, self.isa, self.block_size, self.dtype)
        self.layout: CacheLayout | None = None
        if self.takes and decodes and current().by_request:
            self.layout = layout_of(self.isa, self.block_size, self.head_dim, self.dtype)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> CpuBatch:
        """Divide a batch into the rows that ask, and the rest."""
        common = common_attn_metadata
        if not self.takes:
            causal_alone(common)
            return CpuBatch(rows_of(common, self.block_size))
        asking: list[BatchRow] = []
        if self.layout is not None:
            every = rows_of(common, self.block_size)
            asking = [x for x in every if current().asks(x.served, x.n, x.seen)]
            if asking:
                causal_alone(common)
            if asking and len(asking) == len(every):
                return CpuBatch(asking, None, self.layout)
        if asking:
            # vLLM has these rows attend to their newest tokens alone; that is overwritten.
            common = copy.copy(common)
            common.seq_lens = common.seq_lens.clone()
            for row in asking:
                common.seq_lens[row.number] = row.n
        own = super().build(common_prefix_len, common, fast_build)
        return CpuBatch(asking, own, self.layout)


class RegardCpuImpl(RowAttention, CPUAttentionBackendImpl):
    """Attention of one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> None:
        if attn_type == AttentionType.DECODER and (current().by_request or not kernel(head_size)):
            self.prepare(
                num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window,
                kv_cache_dtype, logits_soft_cap, sinks, others,
            )  # fmt: skip
            others = {}
        # Whether vLLM's kernel serves this layer, once it is asked.
        self._takes: bool | None = None
        CPUAttentionBackendImpl.__init__(
            self, num_heads, head_size, scale, num_kv_heads or num_heads, alibi_slopes,
            sliding_window, kv_cache_dtype, logits_soft_cap, attn_type,
            kv_sharing_target_layer_name, sinks, **others,
        )  # fmt: skip

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CpuBatch | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend: query [tokens, h, d], key and value [tokens, g, d], output like query."""
        if attn_metadata is None:  # vLLM warms up
            return output
        if attn_metadata.own is not None:
            super().forward(
                layer, query, key, value, kv_cache, attn_metadata.own, output, output_scale,
                output_block_scale,
            )  # fmt: skip
        if attn_metadata.rows:
            pages = pools(kv_cache)
            self.attend_rows(layer, query, pages, attn_metadata.rows, output, attn_metadata.layout)
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write new keys and values [tokens, g, d], as the kernel reads them if it runs here."""
        if self._takes is None:
            own = self.attn_type != AttentionType.DECODER
            self._takes = own or takes(self.head_size, layer.isa, kv_cache.shape[2], kv_cache.dtype)
        if self._takes:
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        else:
            write_keys(key, value, kv_cache, slot_mapping)


class RegardCpuBackend(OwnParts, CPUAttentionBackend):
    """Takes the place of `CPU_ATTN`, the only member of vLLM's registry that a CPU takes."""

    impl, builder = RegardCpuImpl, RegardCpuBuilder


def kernel(head_size: int) -> bool:
    """Whether vLLM's kernel runs heads of a size, and is to."""
    return head_size in CPUAttentionBackend.get_supported_head_sizes() and current().kernel


def takes(head_size: int, isa: str, block: int, dtype: torch.dtype) -> bool:
    """Whether vLLM's kernel serves a layer: Regard must know how it stores keys, if some ask."""
    if not kernel(head_size):
        return False
    return not current().by_request or layout_of(isa, block, head_size, dtype) is not None
