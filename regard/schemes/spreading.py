"""Spread a model over devices: each rank runs some tokens, and attention covers all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ShapeError, fail, need, shape_of
from regard.core.keys import Dense
from regard.core.method import method
from regard.core.support import Blocks, Sinks
from regard.models.attach import attach
from regard.models.detaching import Detaching
from regard.models.forward import WholeText, given_to
from regard.models.recomputation import recomputing
from regard.models.stage import Stage
from regard.schemes.layouts import Contiguous, Layout, Striped, ZigZag
from regard.schemes.messages import TIMEOUT, Peers
from regard.schemes.sharded_keys import ShardedKeys, peers_of
from regard.schemes.tensor_parallel import need_whole_layers

STAR = "star"
AUTO = "auto"
NAMES = (AUTO, "ring", "burst", "gather", "heads", "heads_ring", STAR)
LAYOUTS = {"zigzag": ZigZag, "contiguous": Contiguous, "striped": Striped}


# The most numbers of gradients in one message, except for larger parameters.
BUCKET = 1 << 22
# Consecutive generated tokens that one rank keeps before the next rank does.
DEALT = 16


@dataclass(frozen=True)
class Grown(Layout):
    """The layout of a prompt, followed by generated tokens assigned in blocks of `block`.

    The last rank, which holds least in a zigzag of odd length, gets the first block.

    >>> [Grown(9, 2, Contiguous(4, 2), 2).positions(rank).tolist() for rank in range(2)]
    [[0, 1, 6, 7], [2, 3, 4, 5, 8]]
    """

    prompt: Layout
    block: int = DEALT

    def owner_of(self, positions: Tensor) -> Tensor:
        """Return the owners from the layout of the prompt; the rest is assigned in turn."""
        owners = self.world - 1 - (positions - self.prompt.length) // self.block % self.world
        old = positions < self.prompt.length
        owners[old] = self.prompt.owner_of(positions[old])
        return owners

    def positions(self, rank: int) -> Tensor:
        """Return the positions of the prompt, and those assigned after it."""
        new = torch.arange(self.prompt.length, self.length)
        return torch.cat((self.prompt.positions(rank), new[self.owner_of(new) == rank]))


class _Now(NamedTuple):
    """The layout of the running forward; `first` is None where tokens are spread."""

    layout: Layout
    first: int | None = None


class _SpreadThread(threading.local):
    now: _Now | None = None


class Spread(Stage):
    """Shard the keys of every call: a rank's tokens attend to those of all ranks.

    Inputs of a forward are cut by the layout when it starts; masks are those of the whole text.
    """

    def __init__(
        self, peers: Peers, scheme: str = AUTO, layout: str = "zigzag", where: Any = None
    ) -> None:
        super().__init__(where)
        if scheme not in NAMES:
            fail(RuleError, "scheme", repr(scheme), f"one of {', '.join(NAMES)}", "pass 'auto'")
        if layout not in LAYOUTS:
            fail(RuleError, "layout", repr(layout), f"one of {', '.join(LAYOUTS)}", "leave it out")
        self.peers, self.scheme, self.kind = peers, scheme, layout
        self._thread = _SpreadThread()
        self._last: _Now | None = None
        # Set while tokens are generated: the layout of the prompt.
        self.prompt: Layout | None = None

    def layout_of(self, length: int) -> Layout:
        """Return the layout of a text of this many tokens."""
        world = self.peers.world
        if self.scheme == STAR:
            layout: Layout = Striped(length, world, block=max(1, ceil(length / world)))
        else:
            layout = LAYOUTS[self.kind](length, world)
        if min(layout.counts()) == 0:
            fail(
                ShapeError, "input_ids", f"{length} tokens, which leave a rank without any",
                f"a token for each of {world} ranks, and two in a zigzag",
                "use fewer ranks for short texts",
            )  # fmt: skip
        return layout

    def arrive(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Cut the inputs of a forward: ids, positions and labels of this rank's tokens."""
        given = dict(given_to(model, args, kwargs))
        name = "input_ids" if given.get("input_ids") is not None else "inputs_embeds"
        x = given.get(name)
        if not isinstance(x, Tensor) or x.dim() < 2:
            fail(
                CapabilityError, "inputs", shape_of(x), "input_ids [b, n] or inputs_embeds",
                "spread the language model inside: regard.spread(model.language_model)",
            )  # fmt: skip
        if self.prompt is not None:
            return self._next(given, x)
        cache = given.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()):
            fail(
                CapabilityError, "past_key_values", "a cache that is filled",
                "a text from its beginning", "generate by spread.generate(ids, ...)",
            )  # fmt: skip
        return self._cut(given, name, x)

    def _next(self, given: dict[str, Any], x: Tensor) -> Any:
        """Prepare a forward of new tokens, the same on all ranks."""
        assert self.prompt is not None
        first = int(given.pop("first_position"))
        length = first + x.shape[1]
        self._thread.now = _Now(Grown(length, self.peers.world, self.prompt), first)
        padding = given.pop("padding", None)
        return (), given, {"whole": WholeText(length, first, padding)}

    def _cut(self, given: dict[str, Any], name: str, x: Tensor) -> Any:
        b, length = x.shape[:2]
        layout, rank = self.layout_of(length), self.peers.rank
        positions, padding = given.get("position_ids"), given.get("attention_mask")
        documents = None
        if isinstance(positions, Tensor) and padding is None:
            later = positions.diff(dim=-1) != 1
            if bool(later.any()):
                documents = torch.nn.functional.pad(later.long().cumsum(-1), (1, 0))
        if isinstance(padding, Tensor):
            if padding.shape != (b, length):
                fail(
                    ShapeError, "attention_mask", shape_of(padding), f"[{b}, {length}]",
                    "pass the mask of padding, or packed documents by position_ids",
                )  # fmt: skip
            padding = None if bool(padding.bool().all()) else padding.bool()
        if positions is None:
            positions = torch.arange(length, device=x.device)[None]
        given[name] = layout.take(x, rank, 1)
        given["position_ids"] = layout.take(positions, rank, -1)
        given["attention_mask"] = None
        labels = given.get("labels")
        if labels is not None:  # shifted before they are cut: the next token may be elsewhere
            shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
            given["labels"] = given["shift_labels"] = layout.take(shifted, rank, -1)
            given["num_items_in_batch"] = (shifted != -100).sum()
        self._thread.now = self._last = _Now(layout)
        return (), given, {"whole": WholeText(length, 0, padding, documents)}

    def before(self, call: Call) -> Call:
        """Shard the keys."""
        now = self._thread.now
        if getattr(call.forward, "whole", None) is None:
            # Activation checkpointing recomputes in the backward, maybe in another thread.
            now = self._last if recomputing() else None
        if now is None:
            return call
        own, rank = call.keys.dense(), self.peers.rank
        scheme = None if self.scheme in (AUTO, STAR) or now.first is not None else self.scheme
        held = len(now.layout.positions(rank))
        if now.first is not None:
            new = torch.arange(now.first, now.layout.length)
            mine = now.layout.owner_of(new) == rank
            if len(new) != call.n or own.m - call.n + int(mine.sum()) != held:
                _not_spread(call, own.m, held)
            own = _kept(call, own, mine)
            return call.replace(keys=ShardedKeys(own, self.peers, now.layout))
        if own.m != held or call.n != held:
            _not_spread(call, own.m, held)
        if self.scheme == STAR:
            size = max(1, ceil(now.layout.length / self.peers.world))
            call = call.replace(rule=anchored(call.rule, size))
        keys = ShardedKeys(
            Dense(own.k, own.v), self.peers, now.layout, now.layout, None, scheme
        )  # fmt: skip
        # A later stage may replace the keys; the positions of the queries stay.
        return call.replace(keys=keys, q_positions=keys.q_positions)


def _kept(call: Call, keys: Dense, mine: Tensor) -> Dense:
    """Return the keys without the new ones that other ranks keep, and put them in the cache.

    Every rank ran the new tokens; `mine` [n] says which of them this rank keeps.
    """
    if bool(mine.all()):
        return keys
    old = keys.m - call.n
    if bool(mine.any()):
        slots = torch.cat((torch.arange(old), old + mine.nonzero().flatten())).to(keys.k.device)
        k, v = keys.k[:, :, slots], keys.v[:, :, slots]
    else:
        k, v = keys.k[:, :, :old], keys.v[:, :, :old]
    layer = call.forward.cache.layers[call.site.layer]
    layer.keys, layer.values = k, v
    return Dense(k, v)


@method("star_attention", call="regard.spread(model, mesh, scheme='star')")
def anchored(rule: Any, size: int) -> Any:
    """Return a rule whose queries attend to their own block of `size` keys, and the first block.

    This is the first phase of Star Attention: the first block is the anchor of every other.

    >>> from regard.core.rule import Rule
    >>> from regard.core.support import Causal
    >>> print(anchored(Rule(Causal()), 2).draw(6))
    #.....
    ##....
    ###...
    ####..
    ##..#.
    ##..##
    """
    return rule.replace(support=rule.support & (Blocks(size) | Sinks(size)))


def _not_spread(call: Call, found: int, held: int) -> None:
    fail(
        CapabilityError, getattr(call.site, "module", None) or "a call",
        f"{call.n} queries and {found} keys, where this rank has {held} tokens",
        "self-attention over the tokens of the text",
        "spread models whose attention is over their input alone",
    )  # fmt: skip


class Spreading(Detaching):
    """A spread model: call it with whole inputs on every rank; each runs its tokens.

    Outputs are those of this rank's tokens (`positions`); a loss is this rank's part of the mean
    over all tokens, so that losses and gradients summed over ranks are those of one process.
    """

    def __init__(self, model: nn.Module, stage: Spread, attached: Any) -> None:
        self.model, self.stage, self.attached = model, stage, attached
        self.peers = stage.peers
        # This rank's part of the cache of the last generation.
        self.cache: Any = None

    def positions(self, length: int) -> Tensor:
        """Return the positions of this rank's tokens in a text of this many."""
        return self.stage.layout_of(length).positions(self.peers.rank)

    def gather(self, x: Tensor, length: int) -> Tensor:
        """Gather x [b, own tokens, ...] of all ranks as [b, length, ...]; not differentiable."""
        layout = self.stage.layout_of(length)
        counts = layout.counts()
        most = max(counts)
        padded = x.new_zeros(x.shape[0], most, *x.shape[2:])
        padded[:, : x.shape[1]] = x.detach()
        found = self.peers.everyone(padded, "gathering outputs")
        joined = torch.cat([found[r][:, :c] for r, c in enumerate(counts)], 1)
        order = torch.cat([layout.positions(r) for r in range(self.peers.world)]).argsort()
        return joined[:, order.to(x.device)]

    def loss(self, own: Tensor) -> float:
        """Sum the losses of all ranks."""
        return float(self.peers.total(own.detach().float().reshape(1), "adding losses up"))

    def sum_gradients(self) -> None:
        """Sum the gradients of all ranks after `backward`, so that every rank takes the same step.

        FSDP and DDP over this dimension do it themselves (they divide by the number of ranks, so
        multiply the loss by it).
        """
        for names, some in _buckets(self.model):
            own = [torch.zeros_like(x) if x.grad is None else x.grad for x in some]
            flat = torch.cat([x.flatten() for x in own])
            what = f"adding gradients of {names[0]} to {names[-1]} up"
            summed = self.peers.total(flat, what).split([x.numel() for x in some])
            for parameter, part in zip(some, summed, strict=True):
                parameter.grad = part.view_as(parameter)

    @torch.no_grad()
    def generate(
        self, ids: Tensor, max_new_tokens: int = 20, *, queries: int = 0,
        attention_mask: Tensor | None = None, stop: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Generate greedily: ids [b, n] to [b, n + new]; the memory stays spread.

        Ranks keep the new tokens in turn, `DEALT` at a time, so that all hold equally many.

        The last `queries` tokens of the prompt run on all ranks, over all its keys: with "star"
        they are the question, whose attention is exact. `stop` ends a batch of one.
        """
        transformers = need("transformers", "hf", "generates from models of transformers")
        cache: Any = transformers.DynamicCache()
        self.cache, stage = cache, self.stage
        context = ids.shape[1] - queries
        layout = stage.layout_of(context)
        padding = None if attention_mask is None else attention_mask.bool()
        positions = None
        if padding is not None:
            positions = (padding.long().cumsum(-1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids[:, :context], past_key_values=cache, use_cache=True,
            attention_mask=None if padding is None else padding[:, :context].long(),
            **({} if positions is None else {"position_ids": positions[:, :context]}),
        )  # fmt: skip
        owner = int(layout.owner_of(torch.tensor([context - 1])))
        token = self._agreed(out.logits[:, -1].argmax(-1), owner)
        try:
            stage.prompt = layout
            if queries:
                at = None if positions is None else positions[:, context:]
                token = self._step(ids[:, context:], context, cache, padding, at)
            made = [token]
            for _ in range(max_new_tokens - 1):
                if stop is not None and len(token) == 1 and int(token) == stop:
                    break
                first = ids.shape[1] + len(made) - 1
                at = None if positions is None else positions[:, -1:] + len(made)
                token = self._step(token[:, None], first, cache, padding, at)
                made.append(token)
        finally:
            stage.prompt = None
        return torch.cat((ids, torch.stack(made, 1)), 1)

    def _step(
        self, ids: Tensor, first: int, cache: Any, padding: Tensor | None, at: Tensor | None
    ) -> Tensor:
        """Run tokens on all ranks, and return the next tokens [b]."""
        n = ids.shape[1]
        if at is None:
            at = torch.arange(first, first + n, device=ids.device).expand(len(ids), -1)
        if padding is not None:
            padding = torch.nn.functional.pad(
                padding, (0, first + n - padding.shape[1]), value=True
            )
        out = self.model(
            input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True,
            first_position=first, padding=padding,
        )  # fmt: skip
        return self._agreed(out.logits[:, -1].argmax(-1), 0)

    def _agreed(self, token: Tensor, owner: int) -> Tensor:
        """Return the tokens chosen by one rank."""
        return self.peers.everyone(token, "agreeing on tokens")[owner]

    def __repr__(self) -> str:
        name, world = type(self.model).__name__, self.peers.world
        return f"Spreading({name} over {world} ranks by {self.stage.scheme})"


def _buckets(model: nn.Module) -> Iterator[tuple[list[str], list[nn.Parameter]]]:
    """Yield gradients in groups of one dtype and device: each group is one message."""
    names: list[str] = []
    some: list[nn.Parameter] = []
    for name, x in model.named_parameters():
        if not x.requires_grad:
            continue
        full = sum(y.numel() for y in some) + x.numel() > BUCKET
        if some and (full or (x.dtype, x.device) != (some[0].dtype, some[0].device)):
            yield names, some
            names, some = [], []
        names.append(name)
        some.append(x)
    if some:
        yield names, some


def spread(
    model: Any,
    mesh: Any = None,
    scheme: str = AUTO,
    dim: str | None = "cp",
    *,
    layout: str = "zigzag",
    check: Any = False,
    timeout: float = TIMEOUT,
) -> Spreading:
    """Spread a model of transformers over the ranks of a mesh dimension, by tokens.

    `mesh` is a `DeviceMesh` with a dimension `dim`, a process group, or None for all processes.
    `scheme` is "auto" (the cheapest in the plan), "ring", "burst", "gather", "heads", "heads_ring"
    or "star" (an approximation: a block sees itself and the first one). Every rank calls the model
    with the whole batch; ids, positions and labels are cut inside. Masks stay: windows, documents
    (by `position_ids` that restart) and padding are those of the whole text.

        with regard.spread(model, mesh, scheme="ring") as spread:
            loss = model(ids, labels=ids).loss
            loss.backward()
            spread.sum_gradients()
            optimizer.step()
    """
    need_whole_layers(model)
    peers = peers_of(mesh, dim, timeout)
    stage = Spread(peers, scheme, layout)
    return Spreading(model, stage, attach(model, [stage], check=check))
