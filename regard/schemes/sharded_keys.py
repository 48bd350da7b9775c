"""Keys over devices: each rank holds those of some positions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from regard.core.errors import CapabilityError, ShapeError, fail, shape_of
from regard.core.keys import STEP, Dense, Keys
from regard.core.partial import wide
from regard.run.transforms import no_second_derivative
from regard.schemes.layouts import Contiguous, Layout
from regard.schemes.messages import TIMEOUT, Peers, Waiting


def peers_of(mesh: Any, dim: str | None = None, timeout: float = TIMEOUT) -> Peers:
    """Return the ranks of one dimension of a `DeviceMesh`, or of a process group (None: all).

    One object is shared per mesh and dimension, so that calls are counted in one place.
    """
    if isinstance(mesh, Peers):
        return mesh
    group = mesh.get_group(dim) if hasattr(mesh, "get_group") else mesh
    key = (id(group) if group is not None else None, timeout)
    found = _made.get(key)
    if found is None or found[0] is not group:
        found = _made[key] = (group, Peers(group, timeout))
    return found[1]


_made: dict[Hashable, tuple[Any, Peers]] = {}


@dataclass(frozen=True, eq=False, repr=False)
class ShardedKeys(Keys):
    """Keys of which this rank holds `own`: those at the positions that `layout` gives it.

    `own` [b, g, c, d] are the keys of this rank, in order of position. `queries` is the layout of
    the queries of a call: that of the keys where each rank has the queries of its tokens, None
    where all ranks have the same queries, as in decoding. `real` bool [b, length] is False at
    padding; every rank passes all of it. Every rank must make the same calls: `dense` and attention
    are collective.

    >>> import torch.distributed as dist
    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> k, q = torch.randn(1, 2, 6, 8), torch.randn(1, 4, 6, 8)
    >>> keys = ShardedKeys.of(k, k, length=6)
    >>> from regard.run.api import attend, plan
    >>> attend(q, keys).shape, keys.dense().k.shape
    (torch.Size([1, 4, 6, 8]), torch.Size([1, 2, 6, 8]))
    >>> dist.destroy_process_group()
    """

    form: ClassVar[str] = "sharded"
    collective: ClassVar[bool] = True
    own: Keys
    peers: Peers
    layout: Layout
    queries: Layout | None = None
    real: Tensor | None = None
    # The scheme that a plan should choose, if requested.
    scheme: str | None = None

    def __post_init__(self) -> None:
        for name, layout in (("layout", self.layout), ("queries", self.queries)):
            if layout is not None and layout.world != self.peers.world:
                fail(
                    ShapeError, name, f"a layout for {layout.world} ranks",
                    f"one for {self.peers.world}, as the mesh has", "pass world=peers.world",
                )  # fmt: skip
        here = len(self.layout.positions(self.peers.rank))
        if self.own.m != here:
            fail(
                ShapeError, "own", f"{self.own.m} keys on rank {self.peers.rank}",
                f"{here}, as {self.layout} gives it", "pass layout.take(k, rank, dim=2)",
            )  # fmt: skip
        if self.real is not None and tuple(self.real.shape) != (self.own.b, self.layout.length):
            fail(
                ShapeError, "real", shape_of(self.real),
                f"bool [{self.own.b}, {self.layout.length}], that of all tokens",
                "pass the padding mask of the whole sequence to every rank",
            )  # fmt: skip

    @staticmethod
    def of(
        k: Tensor,
        v: Tensor,
        mesh: Any = None,
        dim: str | None = None,
        *,
        layout: Layout | None = None,
        length: int | None = None,
        same_queries: bool = False,
        real: Tensor | None = None,
        scheme: str | None = None,
        timeout: float = TIMEOUT,
    ) -> ShardedKeys:
        """Build sharded keys of this rank's k [b, g, c, d] and v [b, g, c, e].

        `mesh` is a `DeviceMesh` with the dimension `dim`, a process group, or None for all ranks.
        Without a `layout`, ranks hold consecutive pieces of a sequence of `length` tokens.
        """
        peers = peers_of(mesh, dim, timeout)
        if layout is None:
            layout = Contiguous(k.shape[2] * peers.world if length is None else length, peers.world)
        queries = None if same_queries else layout
        return ShardedKeys(Dense(k, v), peers, layout, queries, real, scheme)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return the sizes (b, g, m, d, e): m counts the keys of all ranks."""
        b, g, _, d, e = self.own.shape
        return b, g, self.layout.length, d, e

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of this rank."""
        return self.own.tensors()

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the keys."""
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the keys of this rank."""
        return self.own.device

    @property
    def requires_grad(self) -> bool:
        """Return whether the keys of this rank require gradients."""
        return self.own.requires_grad

    @property
    def count(self) -> float:
        """Return the number of keys that this rank holds."""
        return float(self.own.m)

    @property
    def positions(self) -> Tensor | None:
        """Return the positions of all keys in order, -1 at padding; None without padding."""
        if self.real is None:
            return None
        line = torch.arange(self.layout.length, device=self.real.device)
        return torch.where(self.real, line, -1)

    @property
    def full(self) -> bool:
        """Return whether no key is padding."""
        return self.real is None

    @property
    def placed(self) -> bool:
        """Return False: the keys and queries of a rank have explicit positions."""
        return True

    @cached_property
    def q_positions(self) -> Tensor | None:  # type: ignore[override]
        """Return the positions of this rank's queries; None where all ranks have the same."""
        if self.queries is None:
            return None
        return self.queries.positions(self.peers.rank).to(self.own.device)

    @property
    def kind(self) -> Hashable:
        """Return what a plan may depend on: what every rank knows."""
        b, g, m, d, e = self.shape
        rows = self.layout if self.queries is not None else -(-m // STEP)
        return (
            self.form, b, g, rows, self.queries, d, e, self.dtype, self.device, self.full,
            self.own.form, self.peers.world, self.scheme,
        )  # fmt: skip

    def positions_of(self, slots: Tensor, rank: int) -> Tensor:
        """Return the positions of some keys of a rank: [c], or [b, c] with -1 at padding."""
        at = self.layout.positions(rank)[slots].to(self.own.device)
        if self.real is None:
            return at
        return torch.where(self.real.to(at.device)[:, at], at, -1)

    def take(self, slots: Tensor, *, full: bool | None = None) -> Keys:
        """Reject: a plan cannot send slots of keys on other ranks."""
        fail(
            CapabilityError, "keys", "some slots of sharded keys", "all of them",
            "choose keys before sharding, or by the support of the rule",
        )  # fmt: skip

    def dense(self) -> Dense:
        """Gather the keys of all ranks, in order of position; every rank must call it."""
        own = self.own.dense()
        everything = [torch.arange(c) for c in self.layout.counts()]
        k, v = gathered(self, own, [everything] * self.peers.world, "gathering keys")
        return Dense(k, v, self.positions)

    def __repr__(self) -> str:
        return (
            f"ShardedKeys({self.own}, rank {self.peers.rank} of {self.peers.world}, {self.layout})"
        )


def gathered(
    keys: ShardedKeys, own: Dense, needed: list[list[Tensor]], what: str
) -> tuple[Tensor, Tensor]:
    """Gather the needed keys of every rank, by position: k [b, g, c, d] and v [b, g, c, e].

    `needed[r][s]` are the slots of rank s that rank r needs. Differentiable: gradients go back to
    the ranks that hold the keys, and are summed there. Gathered keys take twice their memory while
    they arrive, and once after that.
    """
    made: tuple[Tensor, Tensor] = _Gathered.apply(keys, needed, what, own.k, own.v)  # type: ignore[no-untyped-call]
    return made


class _Gathered(Function):
    @staticmethod
    def forward(
        ctx: Any, keys: ShardedKeys, needed: list[list[Tensor]], what: str, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        peers, (b, g, _, d), e = keys.peers, k.shape, v.shape[3]
        ranks, here = range(peers.world), needed[peers.rank]
        places = arrived(keys, here).argsort().argsort().split([len(x) for x in here])
        gets = {r: k.new_empty(b * g * len(here[r]) * (d + e)) for r in ranks if r != peers.rank}
        waiting = peers.exchange(_packed(needed, peers.rank, k, v), gets, what)
        count = sum(map(len, here))
        all_k, all_v = k.new_empty(b, g, count, d), v.new_empty(b, g, count, e)
        slots = here[peers.rank].to(k.device)
        own = places[peers.rank].to(k.device)
        all_k.index_copy_(2, own, k[:, :, slots])
        all_v.index_copy_(2, own, v[:, :, slots])
        waiting.wait()
        for rank, place in enumerate(places):
            if rank != peers.rank:
                got_k, got_v = _unpacked(gets.pop(rank), b, g, d, e)
                all_k.index_copy_(2, place.to(k.device), got_k)
                all_v.index_copy_(2, place.to(v.device), got_v)
        ctx.keys, ctx.needed, ctx.what, ctx.places = keys, needed, what, places
        ctx.call, ctx.shapes = peers.calls, (k.shape, v.shape)
        return all_k, all_v

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None, None, Tensor, Tensor]:
        """Return gradients to their owners, rank by rank: two messages are held at a time."""
        if torch.is_grad_enabled():
            no_second_derivative("gather")
        peers, needed, (all_k, all_v) = ctx.keys.peers, ctx.needed, grads
        (b, g, _, d), e = ctx.shapes[0], ctx.shapes[1][3]
        dk, dv = (
            x.new_zeros(shape, dtype=wide(x.dtype))
            for x, shape in zip(grads, ctx.shapes, strict=True)
        )

        def post(step: int) -> tuple[Waiting, Tensor]:
            to, source = (peers.rank + step) % peers.world, (peers.rank - step) % peers.world
            place = ctx.places[to].to(all_k.device)
            sent = torch.cat((all_k[:, :, place].flatten(), all_v[:, :, place].flatten()))
            got = all_k.new_empty(b * g * len(needed[source][peers.rank]) * (d + e))
            what = f"the backward of {ctx.what}"
            return peers.exchange({to: sent}, {source: got}, what, lane=1, call=ctx.call), got

        coming = post(1) if peers.world > 1 else None
        for step in range(peers.world):
            source = (peers.rank - step) % peers.world
            slots = needed[source][peers.rank].to(dk.device)
            if step == 0:
                place = ctx.places[peers.rank].to(all_k.device)
                part_k, part_v = all_k[:, :, place], all_v[:, :, place]
            else:
                assert coming is not None
                coming[0].wait()
                part_k, part_v = _unpacked(coming[1], b, g, d, e)
                coming = post(step + 1) if step + 1 < peers.world else None
            dk.index_add_(2, slots, part_k.to(dk.dtype))
            dv.index_add_(2, slots, part_v.to(dv.dtype))
        return None, None, None, dk.to(all_k.dtype), dv.to(all_v.dtype)


def _packed(needed: list[list[Tensor]], rank: int, k: Tensor, v: Tensor) -> dict[int, Tensor]:
    """Pack what each other rank needs from this one; equal needs share a tensor."""
    made: list[tuple[Tensor, Tensor]] = []
    sends = {}
    for to, row in enumerate(needed):
        slots = row[rank]
        if to == rank:
            continue
        found = next((x for old, x in made if torch.equal(old, slots)), None)
        if found is None:
            some = slots.to(k.device)
            found = torch.cat((k[:, :, some].flatten(), v[:, :, some].flatten()))
            made.append((slots, found))
        sends[to] = found
    return sends


def _unpacked(x: Tensor, b: int, g: int, d: int, e: int) -> tuple[Tensor, Tensor]:
    """Cut a message into k [b, g, c, d] and v [b, g, c, e]."""
    c = x.numel() // (b * g * (d + e))
    return x[: b * g * c * d].view(b, g, c, d), x[b * g * c * d :].view(b, g, c, e)


def arrived(keys: ShardedKeys, slots: list[Tensor]) -> Tensor:
    """Return the positions of slots of every rank, one rank after another, on the CPU."""
    return torch.cat([keys.layout.positions(rank)[x] for rank, x in enumerate(slots)])
