"""Linear attention with conserved flow from sources to sinks (Flowformer)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from regard.core.method import method
from regard.layers.document_sums import running_sum
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.recurrent import Recurrent
from regard.layers.registry import register

EPS = 1e-6


class Flows(NamedTuple):
    """Flow into each sink and out of each source, and each again while the other is conserved.

    All [b, h, n, 1]; `tokens` counts the tokens that are summed over.
    """

    incoming: Tensor
    outgoing: Tensor
    conserved_in: Tensor
    conserved_out: Tensor
    tokens: Tensor


@register("flow_attention")
@method(
    "flow_attention", call='import regard\nlayer = regard.layer("flow_attention", 512, heads=8)'
)
class FlowAttention(Recurrent):
    """Sources compete, and sinks allocate what they receive (Flowformer).

    With `q = sigmoid(Q)`, `k = sigmoid(K)`: incoming `I_i = q_i sum_j k_j`, outgoing
    `O_j = k_j sum_i q_i`. Values are weighted by the softmax of `k_j sum_i q_i / I_i`, times their
    count, and outputs by the sigmoid of `q_i sum_j k_j / O_j`. A causal layer sums over the past,
    and divides its flows by the number of past tokens. The paper has no cross-attention: there the
    flow out of a source is shared by all queries, so an output would depend on the other queries.

    >>> FlowAttention(32, heads=4, causal=False)(torch.randn(1, 5, 32)).shape
    torch.Size([1, 5, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        cross=False, documents=False, constant_memory=True, linear=True
    )

    def features(self, x: Tensor) -> Tensor:
        """Return the sigmoid."""
        return x.sigmoid()

    def _sum(self, x: Tensor, input: LayerInput, name: str) -> Tensor:
        """Sum over the past, or over everything: [b, h, n or 1, c]."""
        if self.causal:
            return running_sum(x, input, name)
        real = 1.0 if input.padding is None else input.padding[:, None, :, None]
        return (x * real).sum(2, keepdim=True)

    def flows(self, q: Tensor, k: Tensor, input: LayerInput) -> Flows:
        """Measure the flows of q and k [b, h, n, d]."""
        count = self._sum(torch.ones_like(q[..., :1]), input, "count").clamp_min(1)
        share = 1 / count if self.causal else torch.ones_like(count)

        def flow(x: Tensor, y: Tensor, name: str) -> Tensor:
            total = self._sum(y, input, name)
            return ((x + EPS) * (total + EPS)).sum(-1, keepdim=True) * share

        incoming, outgoing = flow(q, k, "keys"), flow(k, q, "queries")
        conserved_in = flow(q, k / outgoing, "keys over flow")
        conserved_out = flow(k, q / incoming, "queries over flow").clamp(-1, 1)
        return Flows(incoming, outgoing, conserved_in, conserved_out, count)

    def look(self, q: Tensor, k: Tensor, v: Tensor, input: LayerInput) -> Tensor:
        """Let sources compete, read the sums, and let sinks allocate."""
        flows = self.flows(q, k, input)
        strength = flows.conserved_out.exp()
        total = self._sum(strength, input, "strength").clamp_min(EPS)  # 0 before any real token
        competing = strength / total * flows.tokens
        flow_of = flows.incoming * (flows.tokens if self.causal else 1.0)
        seen = super().look(q / flow_of, k, v * competing, input)
        return seen * flows.conserved_in.sigmoid()
