"""Heads of different layers that share the weights of their queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.method import method
from regard.models.attach import hook_of
from regard.models.projections import NAMES
from regard.models.site import Site


class HeadMatch(NamedTuple):
    """Key head `head` of layer `layer` may use the weights of an earlier layer's; `cosine` likens
    both. Heads are key heads, with the query heads that read them.
    """

    layer: int
    head: int
    source_layer: int
    source_head: int
    cosine: float


class SharedHeadLinear(nn.Module):
    """A linear layer that shares the weights of some heads with other layers.

    `weight` [own heads * size, D] holds the rows of `own` heads; `borrowed` maps each other head to
    (layer, its head).
    """

    def __init__(self, made: nn.Linear, heads: int, borrowed: dict[int, tuple[Any, int]]) -> None:
        super().__init__()
        self.heads = heads
        self.own = [h for h in range(heads) if h not in borrowed]
        # In a tuple, so that the source is not a submodule, and its rows are stored once.
        self.borrowed = dict(borrowed)
        rows = made.weight.detach().view(heads, -1, made.weight.shape[1])[self.own]
        self.weight = nn.Parameter(rows.flatten(0, 1).clone())
        self.bias: nn.Parameter | None = None
        if made.bias is not None:
            self.bias = nn.Parameter(made.bias.detach().view(heads, -1)[self.own].flatten().clone())

    def _head(self, name: str, head: int) -> Tensor:
        home, place = (self, head) if head in self.own else self.borrowed[head]
        held: Tensor = getattr(home, name)
        if isinstance(home, SharedHeadLinear):
            place, count = home.own.index(place), len(home.own)
        else:
            count = self.heads
        own: Tensor = held.unflatten(0, (count, -1))[place]
        return own

    def forward(self, x: Tensor) -> Tensor:
        """Build all heads, [.., heads * size]."""
        weight = torch.cat([self._head("weight", h) for h in range(self.heads)])
        bias = None
        if self.bias is not None:
            bias = torch.cat([self._head("bias", h) for h in range(self.heads)])
        made: Tensor = linear(x, weight, bias)
        return made


def match_heads(model: nn.Module) -> list[HeadMatch]:
    """Find for each head the most similar head of an earlier layer, the most similar pair first.

    Similarity is the cosine of [W_q; W_k], flattened, with all query heads of a key head.
    """
    found, names, earlier = [], list[tuple[int, int]](), list[Tensor]()
    for site in _sites(model):
        layers, g = _linears(model, site), site.kv_heads or site.heads or 1
        rows = torch.cat([layers[x].weight.detach().float().view(g, -1) for x in "qk"], 1)
        own = torch.nn.functional.normalize(rows, dim=1)
        if earlier:
            best = torch.cat([own @ other.T for other in earlier], 1).max(1)
            for head, place in enumerate(best.indices.tolist()):
                value = float(best.values[head])
                found.append(
                    HeadMatch(site.layer or 0, head, names[place][0], names[place][1], value)
                )
        names += [(site.layer or 0, head) for head in range(g)]
        earlier.append(own)
    return sorted(found, key=lambda x: -x.cosine)


def chosen_matches(model: nn.Module, ratio: float) -> list[HeadMatch]:
    """Take the most similar matches, a fraction `ratio` of all heads; a source does not borrow."""
    if not 0 <= ratio < 1:
        fail(
            ValueRangeError, "ratio", ratio, "a fraction of the heads from 0 to under 1", "pass 0.3"
        )
    wanted = round(ratio * sum(s.kv_heads or s.heads or 1 for s in _sites(model)))
    taken: list[HeadMatch] = []
    sources, borrowers = set[tuple[int, int]](), set[tuple[int, int]]()
    for one in match_heads(model):
        own, source = (one.layer, one.head), (one.source_layer, one.source_head)
        if len(taken) < wanted and own not in sources and source not in borrowers:
            taken.append(one)
            sources.add(source)
            borrowers.add(own)
    return taken


@method("direct_share_post_share", call="from regard.conversions import share_heads")
def share_heads(
    model: nn.Module, ratio: float = 0.3, matches: Sequence[HeadMatch] | None = None
) -> list[HeadMatch]:
    """Let a fraction `ratio` of heads use the weights of similar heads in earlier layers, in place.

    Query, key and value weights of a borrowing head are those of its source, stored once; its
    output weights stay. The cache does not shrink, since inputs differ. Returns the
    matches. (DirectShare, Cao et al. 2024)
    """
    taken = chosen_matches(model, ratio) if matches is None else list(matches)
    sites = {s.layer or 0: s for s in _sites(model)}
    made = {layer: _linears(model, site) for layer, site in sites.items()}
    for layer in sorted({x.layer for x in taken}):
        site = sites[layer]
        module = model.get_submodule(site.module)
        own = [x for x in taken if x.layer == layer]
        g = site.kv_heads or site.heads or 1
        for part in "qkv":
            borrowed = {x.head: (made[x.source_layer][part], x.source_head) for x in own}
            shared = SharedHeadLinear(made[layer][part], g, borrowed)
            name = next(n for n in NAMES[part] if getattr(module, n, None) is made[layer][part])
            setattr(module, name, shared)
            made[layer][part] = shared
    return taken


def apart(model: nn.Module, matches: Sequence[HeadMatch]) -> Tensor:
    """Return squared distance of the weights of all matches."""
    sites = {s.layer or 0: s for s in _sites(model)}
    total = torch.zeros(())
    for one in matches:
        g = sites[one.layer].kv_heads or sites[one.layer].heads or 1
        a, b = (_linears(model, sites[x]) for x in (one.layer, one.source_layer))
        for part in "qkv":
            own = a[part].weight.view(g, -1)[one.head] - b[part].weight.view(g, -1)[one.source_head]
            total = total + own.square().sum()
    return total


def post_share(
    model: nn.Module, ratio: float, inputs: Iterable[Tensor], *, steps: int = 300,
    gamma: float = 0.5, rate: float = 1e-4, progress: Callable[[int, float], None] | None = None,
) -> list[HeadMatch]:  # fmt: skip
    """Train the model with a penalty that pulls matched heads together, then share them.

    loss = L_LM + gamma sum over matches and q, k, v of ||W_source - W_own||^2, on texts as ids
    [b, n]. `progress` is called with each step and the distance. Returns the matches. (PostShare)
    """
    taken = chosen_matches(model, ratio)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step, ids in enumerate(islice(cycle(list(inputs)), steps)):
        loss = model(ids, labels=ids, use_cache=False).loss
        distance = apart(model, taken)
        optimizer.zero_grad()
        (loss + gamma * distance).backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, float(distance.detach()))
    return share_heads(model, ratio, taken)


def _sites(model: nn.Module) -> list[Site]:
    return [s for s in hook_of(model)[1] if s.kind == "self"]


def _linears(model: nn.Module, site: Site) -> dict[str, Any]:
    """Return the layers that make q, k and v."""
    module = model.get_submodule(site.module)
    found = {
        part: next((m for n in NAMES[part] if (m := getattr(module, n, None)) is not None), None)
        for part in "qkv"
    }
    if not all(isinstance(x, nn.Linear | SharedHeadLinear) for x in found.values()):
        fail(
            CapabilityError, site.module, f"a {type(module).__name__} without layers of its own "
            "for q, k and v", "three linear layers", "this model's heads cannot be tied one by one",
        )  # fmt: skip
    return found
