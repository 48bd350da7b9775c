"""Point-to-point messages between the ranks of a group, counted, with errors that name the rank."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regard.core.errors import RegardError, ValueRangeError, fail

# Seconds that a message may take before an error names its peer.
TIMEOUT = 120.0
# Environment variables that launchers set for several processes.
MEANT = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_TAGS = 1 << 20
# Messages of one call that may be in transit at once, by what they carry.
LANES = 8


class PeerError(RegardError):
    """Another rank did not answer, or makes a different call; `rank` names it."""

    rank: int = -1


def fail_peer(rank: int, got: str, expected: str, fix: str) -> None:
    """Raise a `PeerError` that names a rank."""
    error = PeerError(f"rank {rank}", got, expected, fix)
    error.rank = rank
    raise error


@dataclass
class Traffic:
    """Bytes and messages that this rank sent, by receiving rank.

    `bytes` holds those of keys, queries and outputs; handshakes are counted separately.
    """

    bytes: Counter[int] = field(default_factory=Counter)
    messages: Counter[int] = field(default_factory=Counter)
    handshakes: int = 0

    @property
    def sent(self) -> int:
        """Return all bytes sent, without handshakes."""
        return self.bytes.total()


class _Open(threading.local):
    counters: tuple[Traffic, ...] = ()


_open = _Open()


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count what this rank sends while the `with` is open, in this thread.

    >>> with traffic() as sent:
    ...     pass
    >>> sent.sent
    0
    """
    made, before = Traffic(), _open.counters
    _open.counters = (*before, made)
    try:
        yield made
    finally:
        _open.counters = before


def count_sent(rank: int, x: Tensor, handshake: bool) -> None:
    """Count a message to a rank."""
    for counter in _open.counters:
        if handshake:
            counter.handshakes += 1
        else:
            counter.bytes[rank] += x.numel() * x.element_size()
            counter.messages[rank] += 1


class Waiting:
    """Messages in transit; `wait` returns when all are sent and received."""

    def __init__(
        self, peers: Peers, works: list[tuple[int, str, Any]], what: str, timed: bool = True
    ) -> None:
        self.peers, self.works, self.what, self.timed = peers, works, what, timed

    def wait(self) -> None:
        """Wait for all; the error for a peer that is gone, or silent for the timeout, names it."""
        limit = timedelta(seconds=self.peers.timeout)
        works, self.works = self.works, []
        for rank, way, work in works:
            try:
                # NCCL waits on its stream, and has its own watchdog.
                done = work.wait(limit) if self.timed else work.wait()
            except RuntimeError as error:
                self._name(rank, way, str(error))
            else:
                if done is False:
                    self._name(rank, way, "timed out")

    def _name(self, rank: int, way: str, error: str) -> None:
        late = "imed out" in error or "imeout" in error
        how = f"silent for {self.peers.timeout:g} s" if late else "gone: its connection is closed"
        fail_peer(
            self.peers.number(rank), f"{how}, in {self.what} ({way} rank "
            f"{self.peers.number(self.peers.rank)})",
            "every rank of the group to be in the same call",
            "look at the log of that rank first",
        )  # fmt: skip


class Peers:
    """The ranks of one dimension of a mesh, or of a process group, and messages between them.

    `timeout` is the number of seconds a message may take. Threads may not share it.
    """

    def __init__(self, group: Any = None, timeout: float = TIMEOUT) -> None:
        if not dist.is_available() or not dist.is_initialized():
            fail(
                ValueRangeError, "group", "no process group", "one that is initialized",
                "start by torchrun and call torch.distributed.init_process_group() first",
            )  # fmt: skip
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.world = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            fail(
                ValueRangeError, "group", f"a group without rank {dist.get_rank()}",
                "a group that this process belongs to", "call it on the ranks of the mesh alone",
            )  # fmt: skip
        _need_world(dist.get_world_size())
        self.timeout = timeout
        # Whether CPU tensors can be sent: if so, handshakes are on the CPU.
        self.on_cpu = str(dist.get_backend(self.group)) != "nccl"
        self.calls = 0

    def number(self, rank: int) -> int:
        """Return the number of a rank of the group among all processes."""
        return int(dist.get_global_rank(self.group, rank))  # type: ignore[arg-type]

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], what: str,
        lane: int = 0, call: int | None = None, handshake: bool = False,
    ) -> Waiting:  # fmt: skip
        """Send contiguous tensors to ranks of the group, and receive into others; by rank.

        Empty ones are not sent: both sides know the lengths. Messages of one `call` (the last by
        default) and `lane` arrive in the order they were sent.
        """
        # Handshakes share a tag, so that ranks in different calls find out.
        number = self.calls if call is None else call
        tag = 0 if handshake else 1 + (number * LANES + lane) % _TAGS
        gets = [(r, x) for r, x in sorted(receives.items()) if r != self.rank and x.numel()]
        puts = [(r, x) for r, x in sorted(sends.items()) if r != self.rank and x.numel()]
        for rank, x in puts:
            count_sent(rank, x, handshake)
        try:
            here = all(x.device.type == "cpu" for _, x in (*gets, *puts))
            if here:
                works = [
                    (r, "to", dist.irecv(x, group=self.group, group_src=r, tag=tag))
                    for r, x in gets
                ] + [
                    (r, "from", dist.isend(x, group=self.group, group_dst=r, tag=tag))
                    for r, x in puts
                ]
            else:
                ops = [dist.P2POp(dist.irecv, x, group=self.group, group_peer=r) for r, x in gets]
                ops += [dist.P2POp(dist.isend, x, group=self.group, group_peer=r) for r, x in puts]
                last = puts[-1][0] if puts else self.rank
                made = dist.batch_isend_irecv(ops) if ops else []
                works = [(last, "from", work) for work in made]
        except RuntimeError as error:
            rank = (puts or gets)[0][0]
            Waiting(self, [], what)._name(rank, "from", str(error))
            raise
        return Waiting(self, works, what, here)

    def everyone(
        self, x: Tensor, what: str, handshake: bool = False, call: int | None = None
    ) -> Tensor:
        """Gather x of every rank, all of one shape, as [world, ...]; not differentiable."""
        x = x.contiguous()
        found = x.new_empty(self.world, *x.shape)
        found[self.rank] = x
        others = [r for r in range(self.world) if r != self.rank]
        self.exchange(
            dict.fromkeys(others, x),
            {r: found[r] for r in others},
            what,
            lane=0 if call is None else 1,
            call=call,
            handshake=handshake,
        ).wait()
        gathered: Tensor = found
        return gathered

    def total(self, x: Tensor, what: str, call: int | None = None) -> Tensor:
        """Sum x over all ranks, in the order of the ranks: the same on every rank."""
        return self.everyone(x, what, call=call).sum(0)


class SomePeers(Peers):
    """Some of the ranks of a group, renumbered: one dimension of a two-dimensional mesh.

    Calls are counted and messages tagged by the group. Two such sets that share no pair of ranks
    may send at the same time.
    """

    def __init__(self, of: Peers, ranks: Sequence[int]) -> None:
        self.of, self.ranks = of, tuple(ranks)
        self.rank, self.world = self.ranks.index(of.rank), len(self.ranks)
        self.timeout, self.on_cpu = of.timeout, of.on_cpu

    @property
    def calls(self) -> int:  # type: ignore[override]
        """Return the number of calls of the group."""
        return self.of.calls

    def number(self, rank: int) -> int:
        """Return the number of a rank among all processes."""
        return self.of.number(self.ranks[rank])

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], what: str,
        lane: int = 0, call: int | None = None, handshake: bool = False,
    ) -> Waiting:  # fmt: skip
        """Exchange with ranks of the group."""
        there = [{self.ranks[r]: x for r, x in some.items()} for some in (sends, receives)]
        return self.of.exchange(there[0], there[1], what, lane, call, handshake)


def _need_world(world: int) -> None:
    """Raise if a launcher started several processes and each is a group of its own."""
    if world > 1:
        return
    for name in MEANT:
        meant = os.environ.get(name, "")
        if meant.isdigit() and int(meant) > 1:
            fail(
                ValueRangeError, "group", f"a world of one process, though {name}={meant}",
                f"{meant} processes that found each other",
                "pass MASTER_ADDR and MASTER_PORT of the first node to all, not localhost",
            )  # fmt: skip


class Exchange(torch.autograd.Function):
    """Send numbers to every rank and receive from every rank; gradients go the other way.

    Several tensors travel together, as one node of the graph: every rank sends them at the same
    time, whatever the order in which its autograd engine runs other nodes.
    """

    @staticmethod
    def forward(ctx: Any, peers: Peers, plans: Plans, what: str, *xs: Tensor) -> Any:
        """Send each x [sum(outgoing)], cut by rank: each [sum(incoming)]."""
        ctx.peers, ctx.plans, ctx.what, ctx.call = peers, plans, what, peers.calls
        return tuple(_swap(peers, plans, what, xs, None))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Send gradients back to where the numbers came from."""
        back = tuple((incoming, outgoing) for outgoing, incoming in ctx.plans)
        what = f"the backward of {ctx.what}"
        return None, None, None, *_swap(ctx.peers, back, what, grads, ctx.call)


# For each tensor, how many numbers go to each rank, and how many come from it.
Plans = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def _swap(
    peers: Peers, plans: Plans, what: str, xs: tuple[Tensor, ...], call: int | None
) -> list[Tensor]:
    found, waiting = [], []
    for lane, (x, (outgoing, incoming)) in enumerate(zip(xs, plans, strict=True)):
        y = x.new_empty(sum(incoming))
        sends, receives = x.contiguous().split(outgoing), y.split(incoming)
        waiting.append(
            peers.exchange(
                dict(enumerate(sends)), dict(enumerate(receives)), what,
                lane=lane if call is None else lane + len(plans), call=call,
            )
        )  # fmt: skip
        receives[peers.rank].copy_(sends[peers.rank])
        found.append(y)
    for one in waiting:
        one.wait()
    return found


def exchange(peers: Peers, plans: Plans, what: str, *xs: Tensor) -> tuple[Tensor, ...]:
    """Exchange numbers with all ranks, differentiably: each x [sum(outgoing)], flat."""
    made: tuple[Tensor, ...] = Exchange.apply(peers, plans, what, *xs)  # type: ignore[no-untyped-call]
    return made
