"""Ranks that are threads of one process: the same schemes and messages, without new processes.

For tests, checks and seeing what many ranks would do; it makes nothing faster.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from regard.core.call import Call
from regard.schemes.messages import Peers, Waiting, count_sent, fail_peer
from regard.schemes.sharded_keys import ShardedKeys

T = TypeVar("T")
Key = tuple[int, int, bool, int, int]  # from, to, whether it is a handshake, call, lane


class _Post:
    """Messages sent and not yet received, by sender, receiver, call and lane."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.letters: defaultdict[Key, deque[Tensor]] = defaultdict(deque)
        self.taken: defaultdict[Key, int] = defaultdict(int)
        self.gone: set[int] = set()


class LocalPeers(Peers):
    """One of several ranks that are threads; see `on_ranks`."""

    def __init__(self, post: _Post, rank: int, world: int, timeout: float) -> None:
        self.group: Any = None
        self.post, self.rank, self.world, self.timeout = post, rank, world, timeout
        self.on_cpu, self.calls = True, 0

    def number(self, rank: int) -> int:
        """Return the rank itself."""
        return rank

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], what: str,
        lane: int = 0, call: int | None = None, handshake: bool = False,
    ) -> Waiting:  # fmt: skip
        """Send copies of tensors; `wait` waits for those of the others, and until these are taken.

        No message outlives the step that sent it, so a scheme that counts on room in the network
        hangs here, as it may between GPUs.
        """
        number = 0 if handshake else self.calls if call is None else call
        where = handshake, number, lane
        works: list[tuple[int, str, Any]] = [
            (rank, "to", _Awaited(self, (rank, self.rank, *where), x))
            for rank, x in receives.items()
            if rank != self.rank and x.numel()
        ]
        with self.post.changed:
            for rank, x in sends.items():
                if rank != self.rank and x.numel():
                    count_sent(rank, x, handshake)
                    key = self.rank, rank, *where
                    letters = self.post.letters[key]
                    letters.append(x.detach().clone())
                    number = self.post.taken[key] + len(letters) - 1
                    works.append((rank, "from", _Sent(self, key, number)))
            self.post.changed.notify_all()
        return Waiting(self, works, what)


class _Awaited:
    """A message in transit."""

    def __init__(self, peers: LocalPeers, key: Key, into: Tensor) -> None:
        self.peers, self.key, self.into = peers, key, into

    def wait(self, limit: Any) -> bool:
        """Wait for it; return False if it does not arrive in time."""
        post, key = self.peers.post, self.key
        with post.changed:
            came = post.changed.wait_for(
                lambda: bool(post.letters[key]) or key[0] in post.gone, self.peers.timeout
            )
            if not came:
                return False
            if not post.letters[key]:
                raise RuntimeError("Connection closed by peer")
            self._take(post.letters[key])
            post.taken[key] += 1
            post.changed.notify_all()
        return True

    def _take(self, letters: deque[Tensor]) -> None:
        """Copy a message and let go of it, before its sender goes on."""
        x = letters.popleft()
        if x.shape.numel() != self.into.numel() or x.dtype != self.into.dtype:
            fail_peer(
                self.key[0], f"{x.numel()} numbers of {x.dtype}",
                f"{self.into.numel()} of {self.into.dtype}", "give all ranks the same call",
            )  # fmt: skip
        self.into.copy_(x.view_as(self.into))


class _Sent:
    """A message of one's own in transit."""

    def __init__(self, peers: LocalPeers, key: Key, number: int) -> None:
        self.peers, self.key, self.number = peers, key, number

    def wait(self, limit: Any) -> bool:
        """Wait until it is taken; return False if it is not in time."""
        post, key = self.peers.post, self.key
        with post.changed:
            return post.changed.wait_for(
                lambda: self.number < post.taken[key] or key[1] in post.gone, self.peers.timeout
            )


def _unlock() -> None:
    """Remove the locks of `cached_property` in Python 3.11.

    There one lock is shared by all instances: a rank that gathers keys in a property would keep the
    others from sending theirs. Later versions of Python have no lock.
    """
    for kind in (Call, ShardedKeys):
        for part in vars(kind).values():
            if isinstance(part, cached_property) and hasattr(part, "lock"):
                part.lock = nullcontext()


def on_ranks(world: int, function: Callable[[Peers], T], timeout: float = 60.0) -> list[T]:
    """Run `function(peers)` on ranks that are threads, and return what each returned.

    Raises the first error of a rank that was not caused by the error of another.

    >>> import torch
    >>> from regard.run.api import attend
    >>> from regard.core.support import Causal
    >>> from regard.schemes import Contiguous, ShardedKeys
    >>> q, layout = torch.randn(1, 2, 10, 8), Contiguous(10, 4)
    >>> def run(peers):
    ...     own = layout.take(q, peers.rank, 2)
    ...     return attend(own, ShardedKeys.of(own, own, peers, layout=layout), rule=Causal())
    >>> torch.allclose(torch.cat(on_ranks(4, run), 2), attend(q, q, q, Causal()), atol=1e-6)
    True
    """
    _unlock()
    post, found, errors = _Post(), {}, {}

    def one(rank: int) -> None:
        try:
            found[rank] = function(LocalPeers(post, rank, world, timeout))
        except BaseException as error:
            with post.changed:
                errors[rank] = error
                post.gone.add(rank)
                post.changed.notify_all()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:  # the order in which they were raised
        raise next(iter(errors.values()))
    return [found[rank] for rank in range(world)]
