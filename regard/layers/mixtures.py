"""Heads as experts: a gate for each head and token on the head's output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regard.core.errors import ValueRangeError, fail
from regard.core.heads import gate_heads
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.document_sums import document_means
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


@register("moh")
@method("moh", call='import regard\nlayer = regard.layer("moh", 512, heads=8, active=6, shared=2)')
class MixtureOfHeads(Attention):
    """Each token uses shared heads and its top others, weighted by a router (MoH).

    `y = sum_i g_i(x) head_i W_i`; `shared` heads are always on; of the rest each token takes the
    top ones until `active` are on. Equal scores give gates of one. Every head still attends: no
    computation is saved without a kernel that skips heads.

    >>> layer = MixtureOfHeads(64, heads=8, active=6, shared=2)
    >>> (layer.gates(torch.randn(1, 5, 64)) > 0).sum(1).tolist()
    [[6, 6, 6, 6, 6]]
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 8, "active": 5, "shared": 2}

    def __init__(
        self, dim: int, heads: int, *, active: int | None = None, shared: int | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, heads, **settings)
        self.active = max(heads * 3 // 4, 1) if active is None else active
        self.shared = self.active // 3 if shared is None else shared
        need_size("active", self.active)
        need_size("shared", self.shared, 0)
        if not self.shared < self.active <= heads:
            fail(
                ValueRangeError, "active", self.active,
                f"more than the {self.shared} shared and at most {heads} heads",
                "count the shared heads among the active",
            )  # fmt: skip
        self.make_router()

    def make_router(self) -> None:
        """Build the weights that `scores` reads."""
        self.to_shared = nn.Linear(self.dim, self.shared, bias=False) if self.shared else None
        self.to_routed = nn.Linear(self.dim, self.heads - self.shared, bias=False)
        self.to_shares = nn.Linear(self.dim, 2, bias=False) if self.shared else None

    def gates(self, x: Tensor) -> Tensor:
        """Weigh each head for each token: [b, h, n], 0 where a head is not used."""
        routed = self.to_routed(x).softmax(-1)
        count = self.active - self.shared
        best = routed.topk(count, dim=-1).indices
        chosen = torch.zeros_like(routed).scatter(-1, best, 1.0)
        routed = routed * chosen
        routed = count * routed / routed.sum(-1, keepdim=True)
        if self.to_shared is not None and self.to_shares is not None:
            always = self.shared * self.to_shared(x).softmax(-1)
            shares = 2 * self.to_shares(x).softmax(-1)
            routed = torch.cat((shares[..., :1] * always, shares[..., 1:] * routed), dim=-1)
        gates: Tensor = routed.transpose(1, 2)
        return gates

    def balance_loss(self, x: Tensor) -> Tensor:
        """Return the load-balance loss `sum_i f_i P_i`, at least 1 / the number of routed heads.

        `f_i` is the share of tokens routed to head i, `P_i` its mean probability. Add it to the
        loss, times 0.01 in the paper.
        """
        likely = self.to_routed(x).softmax(-1).flatten(0, -2)
        best = likely.topk(self.active - self.shared, dim=-1).indices
        used = torch.bincount(best.flatten(), minlength=likely.shape[-1]) / best.numel()
        loss: Tensor = (used * likely.mean(0)).sum()
        return loss

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Gate the heads by the token of each query."""
        return super().mix(gate_heads(seen, self.gates(input.x)), input)


@register("moh_from_trained")
class MixtureOfTrainedHeads(MixtureOfHeads):
    """MoH on the heads of a pretrained model: the first are shared, query norms route the others.

    No weights are added, and with all heads active nothing changes: gates are 1 or 0, with a
    straight-through gradient of the router's probabilities.

    >>> layer = MixtureOfTrainedHeads(64, heads=8, active=8, shared=2)
    >>> layer.gates(torch.randn(1, 5, 64)).unique().tolist()
    [1.0]
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True, exact_gradients=False)

    def make_router(self) -> None:
        """Build nothing: queries are the router."""

    def gates(self, x: Tensor) -> Tensor:
        """Return 1 for shared heads and for those with the longest queries: [b, h, n]."""
        likely = self.queries(x)[:, self.shared :].norm(dim=-1).softmax(1)
        best = likely.topk(self.active - self.shared, dim=1).indices
        chosen = torch.zeros_like(likely).scatter(1, best, 1.0)
        straight = chosen + (likely - likely.detach())
        always = torch.ones_like(likely[:, :1]).expand(-1, self.shared, -1)
        return torch.cat((always, straight), dim=1)


@register("mae_attentive_experts")
@method(
    "mae_attentive_experts",
    call='import regard\nlayer = regard.layer("mae_attentive_experts", 512, heads=8)',
)
class AttentiveExperts(Attention):
    """A mixture of experts, each of which is all heads but one (MAE).

    `y = h / (h - 1) sum_i (1 - g_i) head_i W_i` with g from a small network on the input: one gate
    for a sequence in a bidirectional layer, one for each token in a causal one. While
    `draws_experts` is on, each sequence uses one expert sampled from its gate (the paper trains
    gates and experts in turns; see `gate_parameters`).

    >>> layer = AttentiveExperts(64, heads=8)
    >>> layer.shares(torch.randn(2, 5, 64)).shape
    torch.Size([2, 8, 5])
    """

    can: ClassVar[Capabilities] = Capabilities(multihead_weights=True)

    def __init__(self, dim: int, heads: int, *, hidden: int = 256, **settings: Any) -> None:
        super().__init__(dim, heads, **settings)
        need_size("heads", heads, 2)
        self.to_gate = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, heads))
        self.draws_experts = False

    def shares(self, x: Tensor, input: LayerInput | None = None) -> Tensor:
        """Weigh the experts: [b, h, n], summing to 1 over the heads."""
        if not self.causal and input is not None and not input.crosses:
            x = document_means(x, input.padding, input.documents)
        shares: Tensor = self.to_gate(x).softmax(-1).transpose(1, 2)
        return shares

    def gate_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the gate; all others belong to the experts."""
        return list(self.to_gate.parameters())

    def mix(self, seen: Tensor, input: LayerInput) -> Tensor:
        """Scale each head by one minus the share of the expert without it."""
        shares = self.shares(input.x, input)
        if self.draws_experts:
            one = torch.multinomial(shares.mean(2), 1)
            shares = torch.zeros_like(shares).scatter(
                1, one[..., None].expand(-1, -1, shares.shape[2]), 1.0
            )
        return super().mix(gate_heads(seen, (1 - shares) * self.heads / (self.heads - 1)), input)
