"""Keys over devices: each rank holds those of some positions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ShapeError, fail, shape_of
from regard.core.keys import STEP, Dense, Keys
from regard.schemes.layouts import Contiguous, Layout
from regard.schemes.messages import TIMEOUT, Peers, exchange


def peers_of(mesh: Any, dim: str | None = None, timeout: float = TIMEOUT) -> Peers:
    """Return the ranks of one dimension of a `DeviceMesh`, or of a process group (None: all).

    Those of one mesh and dimension are made once, so that calls are counted in one place.
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

    `own` [b, g, c, d] are the keys of this rank, in rising position. `queries` is the layout of the
    queries of a call: that of the keys where each rank asks for its own tokens, None where all
    ranks ask the same queries, as in decoding. `real` bool [b, length] is false at padding; every
    rank passes all of it. Every rank makes the same calls: `dense` and all that attends are
    collective.

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
    # The scheme that a plan should choose, where somebody said so.
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
        Without a `layout`, pieces in a row of a sequence of `length` tokens.
        """
        peers = peers_of(mesh, dim, timeout)
        if layout is None:
            layout = Contiguous(k.shape[2] * peers.world if length is None else length, peers.world)
        queries = None if same_queries else layout
        return ShardedKeys(Dense(k, v), peers, layout, queries, real, scheme)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Sizes (b, g, m, d, e): m counts the keys of all ranks."""
        b, g, _, d, e = self.own.shape
        return b, g, self.layout.length, d, e

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those of this rank."""
        return self.own.tensors()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.own.dtype

    @property
    def device(self) -> torch.device:
        """Device of the keys of this rank."""
        return self.own.device

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient will be asked of the keys of this rank."""
        return self.own.requires_grad

    @property
    def count(self) -> float:
        """Keys that this rank holds."""
        return float(self.own.m)

    @property
    def positions(self) -> Tensor | None:
        """Positions of all keys in order; -1 at padding, None without any."""
        if self.real is None:
            return None
        line = torch.arange(self.layout.length, device=self.real.device)
        return torch.where(self.real, line, -1)

    @property
    def full(self) -> bool:
        """Whether no key is padding."""
        return self.real is None

    @property
    def placed(self) -> bool:
        """Keys and queries of a rank have positions of their own."""
        return True

    @cached_property
    def q_positions(self) -> Tensor | None:  # type: ignore[override]
        """Positions of the queries of this rank; None where all ranks ask the same."""
        if self.queries is None:
            return None
        return self.queries.positions(self.peers.rank).to(self.own.device)

    @property
    def kind(self) -> Hashable:
        """What a plan may depend on: what every rank knows."""
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
        """Refuse: slots of keys on other ranks would have to be sent by whoever plans."""
        fail(
            CapabilityError, "keys", "some slots of keys over devices", "all of them",
            "choose keys before they are sharded, or by the support of the rule",
        )  # fmt: skip

    def dense(self) -> Dense:
        """Gather the keys of all ranks, in order of position; every rank must ask."""
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
    the ranks that hold the keys, and are summed there.
    """
    peers, (b, g, _, d, e) = keys.peers, own.shape
    slots = [needed[rank][peers.rank].to(own.k.device) for rank in range(peers.world)]
    x = torch.cat([
        torch.cat((own.k[:, :, s].flatten(), own.v[:, :, s].flatten())) for s in slots
    ])  # fmt: skip
    each = b * g * (d + e)
    counts = [len(x) for x in needed[peers.rank]]
    outgoing, incoming = tuple(len(s) * each for s in slots), tuple(c * each for c in counts)
    found = exchange(peers, ((outgoing, incoming),), what, x)[0].split(incoming)
    k = torch.cat([
        x[: b * g * c * d].view(b, g, c, d) for x, c in zip(found, counts, strict=True)
    ], 2)  # fmt: skip
    v = torch.cat([
        x[b * g * c * d :].view(b, g, c, e) for x, c in zip(found, counts, strict=True)
    ], 2)  # fmt: skip
    order = arrived(keys, needed[peers.rank]).argsort().to(k.device)
    return k[:, :, order], v[:, :, order]


def arrived(keys: ShardedKeys, slots: list[Tensor]) -> Tensor:
    """Positions of slots of every rank, one rank after the other, on the CPU."""
    return torch.cat([keys.layout.positions(rank)[x] for rank, x in enumerate(slots)])


__all__ = ["ShardedKeys", "arrived", "gathered", "peers_of"]
