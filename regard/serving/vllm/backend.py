"""The attention backend that vLLM runs: new keys go into its cache, calls go to the one runner.

vLLM asks for four classes: a backend (what is supported), a metadata builder (once for each step),
the metadata, and an implementation (once for each layer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from regard.core.call import Call
from regard.core.errors import CapabilityError, fail
from regard.core.key_forms import Paged
from regard.models.site import Site
from regard.serving.vllm.batch_rows import BatchRow, causal_alone, rows_of
from regard.serving.vllm.cache_layout import CacheLayout, ServerPages
from regard.serving.vllm.hooks import current
from regard.serving.vllm.layer_rules import LayerRules

# Types of a cache that are read as they are.
CACHES = ("auto", "float16", "bfloat16")


class OwnParts:
    """What attends and what reads a batch, for a backend that names them; heads of any size."""

    impl: ClassVar[type[Any]]
    builder: ClassVar[type[Any]]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Return nothing: heads of any size will do."""
        return []

    @classmethod
    def get_impl_cls(cls) -> type[Any]:
        """Return what attends."""
        return cls.impl

    @classmethod
    def get_builder_cls(cls) -> type[Any]:
        """Return what reads a batch."""
        return cls.builder


@dataclass
class RegardMetadata:
    """What one step computes: a row for each request, and where new keys go."""

    rows: list[BatchRow]
    # Of each token.
    slots: Tensor
    causal: bool = True


class RegardBuilder(AttentionMetadataBuilder[RegardMetadata]):
    """Reads a batch once for all layers that share a block table."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.block = kv_cache_spec.block_size

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> RegardMetadata:
        """Read lengths, block tables and slots."""
        common = common_attn_metadata
        causal_alone(common)
        tokens = int(common.query_start_loc_cpu[-1])
        return RegardMetadata(rows_of(common, self.block), common.slot_mapping[:tokens])


class RowAttention:
    """Attention of one layer to the rows of a batch, one by one, through the one runner."""

    def prepare(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        sinks: Tensor | None,
        others: dict[str, Any],
    ) -> None:
        """Record what vLLM says of a layer, or refuse it."""
        if kv_cache_dtype not in CACHES:
            fail(
                CapabilityError, "kv_cache_dtype", f"a cache of {kv_cache_dtype}",
                "keys in 16 or 32 bits, which Regard reads as they are",
                "leave --kv-cache-dtype out, or unset REGARD",
            )  # fmt: skip
        if any(x not in (None, False, -1) for x in others.values()):
            fail(
                CapabilityError, "attention", f"{sorted(others)}, which Regard does not know",
                "a scale, windows, soft caps, slopes and sinks", "unset REGARD for this model",
            )  # fmt: skip
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes)
        self.rules = LayerRules(
            self.scale, sliding_window, logits_soft_cap or None, slopes,
            None if sinks is None else sinks.detach(),
        )  # fmt: skip

    def attend_rows(
        self,
        layer: Any,
        query: Tensor,
        pages: tuple[Tensor, Tensor],
        rows: list[BatchRow],
        output: Tensor,
        layout: CacheLayout | None = None,
    ) -> None:
        """Attend: query [tokens, h, d], output like it; pages of keys and of values."""
        serving, site = current(), current().site_of(layer.layer_name)
        out = output.view(-1, self.num_heads, self.head_size)
        for row in rows:
            call = self.call(query, pages, row, site, layout, whole=serving.by_request)
            made = serving.attend(call, row.served, self.rules)
            out[row.start : row.start + row.n] = made[0].transpose(0, 1)

    def call(
        self,
        query: Tensor,
        pages: tuple[Tensor, Tensor],
        row: BatchRow,
        site: Site | None,
        layout: CacheLayout | None,
        *,
        whole: bool,
    ) -> Call:
        """Build the call of one request over its pages; `whole` keeps those behind a window."""
        (k, v), n, seen, table = pages, row.n, row.seen, row.table
        q = query[row.start : row.start + n].transpose(0, 1)[None]
        first = 0 if whole else self.rules.first_needed(n, seen) // k.shape[2]
        if first:  # keys that no query can see; what matters is how far apart tokens are
            table, seen = table[..., first:], seen - first * k.shape[2]
        lengths = row.lengths if not first else torch.tensor([[seen]])
        lengths = lengths.to(q.device)
        keys = (
            Paged(k, v, table, lengths, longest=seen)
            if layout is None
            else ServerPages(k, v, table, lengths, longest=seen, layout=layout)
        )
        return Call(q, keys, self.rules.of(n, seen), site=site)


class RegardImpl(RowAttention, AttentionImpl[RegardMetadata]):
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
        if attn_type != AttentionType.DECODER:
            fail(
                CapabilityError, "attn_type", attn_type, "attention of a decoder to itself",
                "serve this model without Regard: unset REGARD",
            )  # fmt: skip
        self.prepare(
            num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window,
            kv_cache_dtype, logits_soft_cap, sinks, others,
        )  # fmt: skip
        self.kv_cache_dtype, self.sliding_window = kv_cache_dtype, sliding_window
        self.sinks, self.alibi_slopes = sinks, alibi_slopes
        self.shares_cache = kv_sharing_target_layer_name is not None

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: RegardMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend: query [tokens, h, d], key and value [tokens, g, d], output like query."""
        if attn_metadata is None:  # vLLM warms up
            return output
        if not self.shares_cache:
            write_keys(key, value, kv_cache, attn_metadata.slots)
        self.attend_rows(layer, query, pools(kv_cache), attn_metadata.rows, output)
        return output


class RegardBackend(OwnParts, AttentionBackend):
    """What vLLM may ask of attention by Regard."""

    impl, builder = RegardImpl, RegardBuilder
    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16, torch.bfloat16, torch.float32,
    ]  # fmt: skip
    supported_kv_cache_dtypes: ClassVar[list[Any]] = list(CACHES)

    @staticmethod
    def get_name() -> str:
        """Return the member of vLLM's registry whose place this takes."""
        return "CUSTOM"

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Return that blocks of any size will do."""
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Ask for blocks by head: [blocks, g, tokens of a block, 2 d]."""
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_sink(cls) -> bool:
        """Return that learned sinks are served."""
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Return that windows are served."""
        return True


def pools(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """View a cache [blocks, g, block, 2 d] as pages of keys and of values, [blocks, g, block, d].

    In each head of a block all keys come before all values, as in vLLM's own kernels.
    """
    blocks, g, block, both = kv_cache.shape
    halves = kv_cache.view(blocks, g, 2 * block, both // 2)
    return halves[:, :, :block], halves[:, :, block:]


def write_keys(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
    """Write keys and values [tokens, g, d] into a cache at `slots` [tokens]; -1 is nowhere."""
    k, v = pools(kv_cache)
    n, block = len(slots), kv_cache.shape[2]
    slots = slots.long()
    key, value = key[:n], value[:n]
    if bool((slots < 0).any()):
        real = slots >= 0
        key, value, slots = key[real], value[real], slots[real]
    where = (slots // block, slice(None), slots % block)
    k[where], v[where] = key, value
