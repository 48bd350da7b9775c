"""Signals between heads: the few directions by which one head steers the attention of another.

The score of a query and a key is a sum over singular directions of W_Q R W_K^T (R the rotation
between the two places); the few that carry it are the signal, and what wrote them upstream is read
off the residual stream (Franco and Crovella 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.projections import HeadWeights, head_weights
from regard.models.residual import FrozenNorm, Stream
from regard.models.site import Site
from regard.models.stage import Stage


@dataclass(frozen=True)
class Signal:
    """What a head reads at one query and one key, direction by direction, the largest first.

    `terms` [d] sum to the raw score, biases apart; the first `kept` carry what this key has over
    the mean of others. `u` and `v`
    [D, d] are directions at the query and at the key, `x_query` and `x_key` the normed states.
    """

    site: Site
    head: int
    query: int
    key: int
    terms: Tensor
    kept: int
    u: Tensor
    v: Tensor
    sizes: Tensor
    x_query: Tensor
    x_key: Tensor
    score: float

    def read_at_key(self, part: Tensor) -> Tensor:
        """Return how much of the kept score a part [..., D] of the key's normed state brings."""
        k = self.kept
        weight = self.sizes[:k] * (self.x_query @ self.u[:, :k])
        return (part.double() @ self.v[:, :k]) @ weight

    def read_at_query(self, part: Tensor) -> Tensor:
        """Return how much of the kept score a part [..., D] of the query's normed state brings."""
        k = self.kept
        weight = self.sizes[:k] * (self.x_key @ self.v[:, :k])
        return (part.double() @ self.u[:, :k]) @ weight


class Watch(Stream):
    """A residual stream that also keeps what each attention module is given, and its q and k."""

    def __init__(self, limit: int = 512) -> None:
        super().__init__(limit)
        self.given: dict[Site, Tensor] = {}
        self.calls: dict[Site, Call] = {}

    def begin(self, model: Any, sites: Any) -> None:
        """Look at the inputs of the attention modules too."""
        super().begin(model, sites)
        for site in sites:
            module = model.get_submodule(site.module)
            hook = module.register_forward_pre_hook(self._keep(site), with_kwargs=True)
            self._handles.append(hook)

    def _keep(self, site: Site) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            self.given[site] = x[:, : self.limit].detach().double()

        return hook

    def after(self, call: Call, partial: Result) -> Result:
        """Keep the call."""
        self.calls[call.site] = call
        return super().after(call, partial)


def watch(model: nn.Module, ids: Tensor, limit: int = 512) -> Watch:
    """Run a model once with a `Watch` attached."""
    stream = Watch(limit)
    with attach(model, stream, check=False), torch.no_grad():
        model(ids[:, :limit])
    return stream


@method(
    "sparse_attention_decomposition",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.models.attach import hook_of\n"
    "from regard.circuits.tracing import signal, sources, watch\n"
    "seen, site = watch(model, ids), hook_of(model)[1][1]\n"
    "print(sources(seen, signal(model, seen, site, 0, query=9, key=3))[:3])",
)
def signal(
    model: nn.Module, seen: Watch, site: Site, head: int, query: int, key: int, *,
    row: int = 0, share: float = 1.0,
) -> Signal:  # fmt: skip
    """Take the score of one query and key apart into orthogonal directions.

    They are ordered by what each has over its mean at the query's earlier keys, since softmax does
    not feel what is common to all; kept are the first whose sum reaches `share` of the whole.
    """
    call = seen.calls[site]
    if not (0 <= query < call.n and 0 <= key < call.m):
        fail(
            ValueRangeError, "query, key", (query, key), f"below {call.n} and {call.m}",
            "name places of the input",
        )  # fmt: skip
    weights = head_weights(model, site)
    x_query, x_key = seen.given[site][row, query], seen.given[site][row, key]
    left = _turned(weights, "q", head, x_query, call.q[row, head, query].double(), site)
    keys = expand_heads(call.k, call.h)
    right = _turned(weights, "k", head, x_key, keys[row, head, key].double(), site)
    qa, ra = torch.linalg.qr(left)
    qb, rb = torch.linalg.qr(right)
    u, s, vt = torch.linalg.svd(ra @ rb.T)
    u, v = qa @ u, qb @ vt.T
    strength = s * (x_query @ u)
    terms = strength * (x_key @ v)
    # The same terms at the other keys the query may attend to, from their keys: v x = vt rb^-T k.
    past = torch.arange(call.m, device=keys.device)[: query + 1]
    others = keys[row, head, past[past != key]].double()
    common = torch.zeros_like(terms)
    if len(others):
        common = strength * (vt @ torch.linalg.solve(rb.T, others.mean(0)))
    order = (terms - common).argsort(descending=True)
    terms, common, u, v, s = terms[order], common[order], u[:, order], v[:, order], s[order]
    over = (terms - common).cumsum(0)
    reached = over >= share * over[-1]
    kept = int(reached.double().argmax()) + 1 if bool(reached.any()) else len(terms)
    score = float(call.q[row, head, query].double() @ keys[row, head, key].double())
    return Signal(site, head, query, key, terms, kept, u, v, s, x_query, x_key, score)


def _turned(
    weights: HeadWeights, part: str, head: int, x: Tensor, found: Tensor, site: Site
) -> Tensor:
    """W R [D, d], R the rotation the model gave this token, read off what came of it.

    Each rotary pair is a complex number; its angle is that between before and after.
    """
    w = getattr(weights, part)[head].double()
    bias = getattr(weights, f"{part}_bias")
    plain = x @ w if bias is None else x @ w + bias[head].double()
    moved = ((plain - found).abs() > 1e-3 * (1 + found.abs())).nonzero()
    if not len(moved):
        return w
    # Some models turn the first features alone.
    turned = int(moved[-1]) // 2 * 2 + 2
    for size in range(turned, w.shape[-1] + 1, 2):
        for halves in (True, False):
            a, b = (_complex(y[..., :size], halves) for y in (plain, found))
            ratio = b / torch.where(a.abs() > 1e-12, a, torch.ones_like(a))
            if torch.allclose(ratio.abs(), torch.ones_like(ratio.abs()), atol=1e-2):
                new = _real(_complex(w[..., :size], halves) * (ratio / ratio.abs()), halves)
                return torch.cat([new, w[..., size:]], -1)
    return fail(
        CapabilityError,
        site.module,
        f"{part} that are more than a rotation of x W_{part.upper()}",
        "queries and keys that are linear in the state, rotated or not",
        "use a model without query-key norms",
    )


def _complex(x: Tensor, halves: bool) -> Tensor:
    if halves:
        a, b = x.chunk(2, -1)
        return torch.complex(a, b)
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def _real(x: Tensor, halves: bool) -> Tensor:
    return torch.cat([x.real, x.imag], -1) if halves else torch.view_as_real(x).flatten(-2)


@torch.no_grad()
def sources(
    seen: Watch, found: Signal, *, at: str = "key", row: int = 0
) -> list[tuple[str, float]]:
    """Which parts of the model wrote the signal: (name, share of the kept terms), largest first.

    Parts are the embedding, every head, the biases and the MLPs below; with the scale of the norm
    held still they sum to the kept terms.
    """
    token = found.key if at == "key" else found.query
    read = found.read_at_key if at == "key" else found.read_at_query
    given, state = seen.given[found.site], seen.entered[found.site].double()
    # The norm before this attention as a linear map at this token: gains times one scale.
    norm = _norm_before(seen, found.site)
    frozen = FrozenNorm.at(norm, state[row : row + 1, token])

    def through(part: Tensor) -> Tensor:
        return read(frozen(part[None])[0])

    parts = [("embedding", float(through(seen.embedding[row, token])))]
    constant = given[row, token] - frozen(state[row : row + 1, token])[0]
    parts.append(("norm's bias", float(read(constant))))
    for layer in seen.layers:
        if layer.site == found.site:
            break
        said = seen.heads(layer.site)[row, :, token]
        parts += [
            (f"L{layer.site.layer}H{h}", float(through(said[h]))) for h in range(said.shape[0])
        ]
        parts.append((f"L{layer.site.layer} bias", float(through(seen.bias(layer.site)))))
        parts.append(
            (f"L{layer.site.layer} MLP", float(through(seen.rest(layer.site)[row, token])))
        )
    return sorted(parts, key=lambda part: -part[1])


def _norm_before(seen: Watch, site: Site) -> Any:
    """Return the norm whose output the attention of a site is given."""
    block = next(layer.block for layer in seen.layers if layer.site == site)
    state, given = seen.entered[site], seen.given[site]
    for module in block.modules():
        if "norm" in type(module).__name__.lower():
            with torch.no_grad():
                made = module(state.to(next(module.parameters()).dtype)).double()
            if made.shape == given.shape and torch.allclose(made, given, atol=1e-2, rtol=1e-2):
                return lambda x, m=module: m(x.to(next(m.parameters()).dtype)).double()
    return fail(
        CapabilityError,
        site.module,
        "an attention that no norm of its block feeds",
        "pre-norm attention",
        "use a pre-norm model",
    )


class Silenced(Stage):
    """Take directions out of what one head writes at some token: `part - P part`."""

    def __init__(self, site: Site, head: int, written: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.site, self.head = site, head
        # In the head's own space: o^T d are the directions it can see.
        basis = torch.linalg.qr(written[head].double() @ directions.double()).Q
        self.basis = basis

    def after(self, call: Call, partial: Result) -> Result:
        """Project."""
        if call.site != self.site:
            return partial
        out = partial.out.clone()
        own = out[:, self.head].double()
        out[:, self.head] = (own - own @ self.basis @ self.basis.T).to(out.dtype)
        return partial._replace(out=out)
