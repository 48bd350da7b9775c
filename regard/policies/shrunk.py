"""A shrunk model, with a report of what it keeps, what it costs, and how its output differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of
from regard.core.html_table import html_table, padded_rows
from regard.models.attach import Attached
from regard.models.detaching import Detaching
from regard.models.site import Site
from regard.policies.shrinking import Shrinking
from regard.run.executor import No


@dataclass(frozen=True)
class LayerReport:
    """What one layer keeps and costs; `kept` is the keys per key head, averaged over a batch."""

    site: Site
    seen: int
    kept: tuple[float, ...]
    bytes: int
    full_bytes: int
    file_bytes: int
    flops: float
    dense_flops: float


@dataclass(frozen=True)
class Report:
    """What a shrunk model keeps and costs, as measured: bytes are those of the tensors held.

    `kl` is the mean KL divergence (nats) of the next-token distributions from those of the full
    model, over the second half of the probe text, read after the first half; `agree` is the share
    of positions where both have the same most likely next token.
    """

    policies: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    kl: float | None = None
    agree: float | None = None
    ids: Tensor | None = field(default=None, repr=False)

    @property
    def bytes(self) -> int:
        """Return the bytes of memory held."""
        return sum(x.bytes for x in self.layers)

    @property
    def full_bytes(self) -> int:
        """Return the bytes that the keys and values of all tokens would take."""
        return sum(x.full_bytes for x in self.layers)

    @property
    def flops(self) -> float:
        """Return the FLOPs of attention so far."""
        return sum(x.flops for x in self.layers)

    @property
    def dense_flops(self) -> float:
        """Return the FLOPs that full attention would have taken."""
        return sum(x.dense_flops for x in self.layers)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of headings, then one row of strings per layer."""
        if not self.full_bytes:
            return [("layer", "kind", "module", "FLOPs", "of dense"), *(
                (str(x.site.layer), x.site.kind, x.site.module, f"{x.flops:.3g}",
                 _share(x.flops, x.dense_flops)) for x in self.layers
            )]  # fmt: skip
        head = ("layer", "seen", "kept by head", "bytes", "of full", "FLOPs of dense")
        return [head, *(
            (str(x.site.layer), str(x.seen), " ".join(f"{c:.0f}" for c in x.kept), f"{x.bytes:,}",
             _share(x.bytes, x.full_bytes), _share(x.flops, x.dense_flops))
            for x in self.layers
        )]  # fmt: skip

    def _repr_html_(self) -> str:
        head, *rows = self.rows()
        return html_table(str(self).splitlines()[0], head, rows)

    def __str__(self) -> str:
        lines = padded_rows(self.rows())
        said = f"{' + '.join(self.policies)}: "
        if self.full_bytes:
            said += f"{self.bytes:,} of {self.full_bytes:,} bytes"
            said += f" ({_share(self.bytes, self.full_bytes)}), "
            files = sum(x.file_bytes for x in self.layers)
            said += f"{files:,} in files, " if files else ""
        said += f"{_share(self.flops, self.dense_flops)} of the FLOPs of attention"
        if self.kl is not None:
            said += f"; KL {self.kl:.4f} nats, next tokens agree {self.agree:.1%}"
        return "\n".join([said, *lines])


def _share(a: float, b: float) -> str:
    return f"{a / b:.1%}" if b else "-"


class Shrunk(Detaching):
    """A shrunk model, until `detach()` or the end of the `with`."""

    def __init__(self, attached: Attached, stage: Shrinking, tokenizer: Any = None) -> None:
        self.attached, self.stage, self.tokenizer = attached, stage, tokenizer

    @property
    def model(self) -> Any:
        """Return the model that was passed in."""
        return self.attached.model

    @property
    def policies(self) -> list[Any]:
        """Return the active policies."""
        return self.stage.policies

    def report(self, text: Any = None) -> Report:
        """Report what is kept and what it costs; with a probe text (or ids), also what is lost.

        Without a text the report is on the cache that was used last, and on all FLOPs so far. For
        a model without a cache, such as one that makes images, it has FLOPs only.
        """
        kl = agree = ids = None
        names = tuple(p.name for p in self.policies)
        if isinstance(self.stage.caching, No):
            if text is not None:
                fail(
                    CapabilityError, "text", shape_of(text), "nothing: it predicts no next token",
                    "call report() after the model has run",
                )  # fmt: skip
            costs = self.stage.costs.items()
            return Report(names, tuple(
                LayerReport(site, 0, (), 0, 0, 0, x.flops, x.dense) for site, x in costs if x.dense
            ))  # fmt: skip
        if text is not None:
            ids = self._ids(text)
            kl, agree = self._loss(ids)
        found = []
        for layer in self.stage.layers:
            memory, site = layer.memory, self.stage.caches.site_of(layer)
            if not memory.seen:
                continue
            read = memory.read()
            at = read.positions
            if at is None:
                kept = torch.full((read.k.shape[1],), float(read.k.shape[2]))
            else:
                at = at[:, None] if at.dim() == 2 else at
                kept = (at >= 0).sum(-1).float().mean(0).expand(read.k.shape[1])
            token = read.k[:, :, :1].nbytes + read.v[:, :, :1].nbytes
            spent = self.stage.costs[site]
            found.append(LayerReport(
                site, memory.seen, tuple(kept.tolist()), layer.nbytes, token * memory.seen,
                memory.file_bytes, spent.flops, spent.dense,
            ))  # fmt: skip
        return Report(names, tuple(found), kl, agree, ids)

    def _ids(self, text: Any) -> Tensor:
        if isinstance(text, Tensor):
            ids = text if text.dim() == 2 else text[None]
        elif isinstance(text, str) and self.tokenizer is not None:
            ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        else:
            fail(
                ValueRangeError, "text", shape_of(text), "ids [b, n], or text with a tokenizer",
                "pass shrink(..., tokenizer=tokenizer), or ids",
            )  # fmt: skip
        if ids.shape[1] < 4:
            fail(ValueRangeError, "text", f"{ids.shape[1]} tokens", "at least 4", "give more")
        return ids

    @torch.no_grad()
    def _loss(self, ids: Tensor) -> tuple[float, float]:
        """Compare predictions on the second half, read after the first half was shrunk."""
        half = ids.shape[1] // 2
        cache = self.model(ids[:, :half], use_cache=True).past_key_values
        ours = self.model(ids[:, half:], past_key_values=cache).logits.float()
        self.stage.paused = True
        try:
            theirs = self.model(ids, use_cache=False).logits[:, half:].float()
        finally:
            self.stage.paused = False
        a, b = theirs.log_softmax(-1), ours.log_softmax(-1)
        kl = (a.exp() * (a - b)).sum(-1).mean()
        agree = (a.argmax(-1) == b.argmax(-1)).float().mean()
        return float(kl), float(agree)

    def __repr__(self) -> str:
        return f"Shrunk({self.stage.name} on {type(self.model).__name__})"
