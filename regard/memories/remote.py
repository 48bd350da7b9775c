"""Keys in other processes, which attend to them there: queries go out, outputs come back."""

from __future__ import annotations

import heapq
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Sequence
from itertools import count, pairwise
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import take_batch
from regard.core.keys import Dense
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.spans import Spans
from regard.core.support import Causal, Everything
from regard.core.support.bands import need_count
from regard.memories.base import KeyMemory, need_keys
from regard.memories.kept import Kept
from regard.run.api import partial


def _say(line: Connection, x: Any) -> None:
    """Send a value by plain pickling: tensors go as bytes, not as memory that is shared."""
    line.send_bytes(pickle.dumps(x))


def _hear(line: Connection) -> Any:
    return pickle.loads(line.recv_bytes())


def _send(line: Connection, x: Tensor) -> int:
    """Send the numbers of a tensor, and give how many bytes they were."""
    x = x.detach().cpu().contiguous()
    _say(line, (list(x.shape), x.dtype))
    numbers: Any = x.view(torch.uint8).numpy().reshape(-1)
    line.send_bytes(numbers)
    return x.nbytes


def _receive(line: Connection) -> Tensor:
    shape, dtype = _hear(line)
    return torch.frombuffer(bytearray(line.recv_bytes()), dtype=dtype).view(shape)


def serve(handle: int) -> None:
    """Keep keys and attend to them until the other end of a pipe hangs up."""
    line = Connection(handle)
    torch.set_num_threads(1)
    kept: dict[int, Kept] = {}
    while True:
        try:
            what, name, told = _hear(line)
        except EOFError:
            return
        if what == "attend":
            line_rule, keep = told
            memory = kept.setdefault(name, Kept())
            q = _receive(line)
            # What is kept already is looked at while the new keys are still on their way.
            parts = [_look(q, memory.read(), line_rule)] if memory.seen else []
            k, v = _receive(line), _receive(line)
            at = torch.arange(k.shape[2]).expand(len(k), -1)
            at = at if keep is None else torch.where(keep, at, -1)
            parts.append(_look(q, Dense(k, v, at), line_rule.replace(support=Causal())))
            memory.extend(k, v, keep)
            _send(line, merge(*parts).out)
        elif what == "append":
            k, v = _receive(line), _receive(line)
            kept.setdefault(name, Kept()).extend(k, v, told)
        elif what == "read":
            _send(line, kept[name].read().k)
            _send(line, kept[name].read().v)
        elif what == "free":
            kept.pop(name, None)
        elif name in kept:
            getattr(kept[name], what)(told)


def _look(q: Tensor, read: Dense, rule: Rule) -> Partial:
    found: Partial = partial(q, read.k, read.v, rule, k_positions=read.positions)
    return found


class AttentionWorkers:
    """Processes that keep the keys of some heads each, and attend to them.

    `remote()` gives a memory whose keys are there. `sent` counts the bytes of queries, keys and
    values that went out, `received` those of outputs that came back. Use it as a context, or
    `close` it.
    """

    def __init__(self, workers: int = 2) -> None:
        need_count("workers", workers)
        # Plain processes: those of multiprocessing run the caller's script again, and may not be
        # started by workers of others.
        code = "import sys; from regard.memories.remote import serve; serve(int(sys.argv[1]))"
        around = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
        self.lines: list[Any] = []
        self._processes: list[Any] = []
        for _ in range(workers):
            ours, theirs = Pipe()
            handle = theirs.fileno()
            self._processes.append(subprocess.Popen(
                [sys.executable, "-c", code, str(handle)], pass_fds=[handle], env=around
            ))  # fmt: skip
            theirs.close()
            self.lines.append(ours)
        self._names = count()
        self.sent = self.received = 0
        self.close = weakref.finalize(self, _end, self.lines, self._processes)

    def __enter__(self) -> AttentionWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remote(self) -> Remote:
        """Make a memory whose keys are kept by the workers."""
        return Remote(self, next(self._names))

    def parts(self, heads: int) -> list[slice]:
        """Share out key heads: a row of them for each worker."""
        if heads < len(self.lines):
            fail(
                CapabilityError, "workers", len(self.lines), f"up to {heads}, the key heads",
                "start fewer workers",
            )  # fmt: skip
        cuts = [heads * i // len(self.lines) for i in range(len(self.lines) + 1)]
        return [slice(a, b) for a, b in pairwise(cuts)]

    def tell(self, what: str, name: int, told: Any = None, *xs: Sequence[Tensor]) -> None:
        """Say something to every worker, with its part of tensors: `xs` have one for each."""
        try:
            for line in self.lines:
                _say(line, (what, name, told))
            for x in xs:
                for line, own in zip(self.lines, x, strict=True):
                    self.sent += _send(line, own)
        except OSError:
            self._dead()

    def hear(self) -> list[Tensor]:
        """Take a tensor from each worker."""
        try:
            found = [_receive(line) for line in self.lines]
        except (EOFError, OSError):
            self._dead()
        self.received += sum(x.nbytes for x in found)
        return found

    def _dead(self) -> Any:
        codes = [p.poll() for p in self._processes]
        fail(
            CapabilityError, "workers", f"one that ended (exit codes {codes})", "workers that live",
            "start them anew, and the text as well: its keys are gone",
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionWorkers:
        return self


def _end(lines: Sequence[Any], processes: Sequence[Any]) -> None:
    for line in lines:
        line.close()
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()


class Remote(KeyMemory):
    """Keys that workers keep: `append` sends them, `attend` sends queries first, then new keys.

    A step costs (2 + 2 / G) e d b bytes each way together: q and the output, and keys and values of
    one head for each G query heads, e bytes a number.
    """

    def __init__(self, workers: AttentionWorkers, name: int) -> None:
        self.workers, self.name = workers, name
        self.seen = 0
        self._new: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._kind: tuple[torch.device, torch.dtype] | None = None
        self._at: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor, keep: Tensor | None = None) -> None:
        """Take in n tokens, which go out behind the next queries."""
        need_keys(k, v, keep)
        self._flush()
        keep = None if keep is None or bool(keep.all()) else keep
        if keep is not None or self._at is not None:
            b, n = k.shape[0], k.shape[2]
            line = torch.arange(self.seen + n, device=k.device)
            old = line[: self.seen].expand(b, -1) if self._at is None else self._at
            new = line[self.seen :].expand(b, n)
            self._at = torch.cat((old, new if keep is None else torch.where(keep, new, -1)), 1)
        self._new, self._kind = (k, v, keep), (k.device, k.dtype)
        self.seen += k.shape[2]

    append = extend

    def _cut(self, x: Tensor, share: int = 1) -> list[Tensor]:
        parts = self.workers.parts(x.shape[1] // share)
        return [x[:, p.start * share : p.stop * share] for p in parts]

    def _flush(self) -> None:
        if self._new is not None:
            k, v, keep = self._new
            self._new = None
            self.workers.tell("append", self.name, keep, self._cut(k), self._cut(v))

    def attend(self, q: Tensor, rule: Rule | None = None) -> Tensor:
        """Attend causally from the tokens appended last, q [b, h, n, d]: [b, h, n, e]."""
        if self._new is None or self._new[0].shape[2] != q.shape[2]:
            fail(
                ValueRangeError, "q", f"{q.shape[2]} queries", "one for each token appended last",
                "append their keys and values first",
            )  # fmt: skip
        k, v, keep = self._new
        self._new = None
        rule = Rule() if rule is None else rule
        if rule.weigh.has_sink or not isinstance(rule.support, Everything | Causal):
            fail(
                CapabilityError, "rule", f"{rule}", "causal softmax",
                "attend to windows and sinks here, where their keys are few",
            )  # fmt: skip
        plain = rule.replace(support=Everything(), offset=0)
        share = q.shape[1] // k.shape[1]
        self.workers.tell(
            "attend", self.name, (plain, keep), self._cut(q, share), self._cut(k), self._cut(v)
        )
        return torch.cat(self.workers.hear(), 1).to(q.device)

    def keys(self) -> Dense:
        """Bring everything back."""
        self._flush()
        if self._kind is None:
            fail(ValueRangeError, "memory", "nothing kept", "some keys", "extend it first")
        self.workers.tell("read", self.name)
        k, v = (torch.cat(self.workers.hear(), 1).to(self._kind[0]) for _ in range(2))
        return Dense(k, v, self._at)

    def forget(self, horizon: Spans) -> None:
        """Keep all."""

    def crop(self, length: int) -> None:
        """Go back to when `length` tokens had been seen."""
        self._flush()
        if self.seen:
            self.workers.tell("crop", self.name, length)
        self.seen, self._at = length, None if self._at is None else self._at[:, :length]

    def reorder(self, rows: Tensor) -> None:
        """Take rows of the batch."""
        self._flush()
        if self.seen:
            self.workers.tell("reorder", self.name, rows.cpu())
        self._at = None if self._at is None else take_batch(self._at, rows)

    def free(self) -> None:
        """Let the workers forget it."""
        self.workers.tell("free", self.name)
        self.seen, self._new, self._at = 0, None, None

    @property
    def nbytes(self) -> int:
        """Bytes held here: tokens that have not gone out yet, and positions."""
        held = [x for x in (*(self._new or ()), self._at) if isinstance(x, Tensor)]
        return sum(x.untyped_storage().nbytes() for x in held)


def wire_bytes(heads: int, kv_heads: int, size: int, batch: int, layers: int, item: int) -> float:
    """Bytes that a step of decoding moves: (2 + 2 / G) e d b layers, d over all query heads.

    >>> wire_bytes(heads=32, kv_heads=8, size=128, batch=64, layers=32, item=2)
    41943040.0
    """
    return (2 + 2 * kv_heads / heads) * item * heads * size * batch * layers


def bandwidth(moved: float, t_model: float, t_attention: float, share: float = 0.2) -> float:
    """Bytes a second that a link must carry, if sending may take a `share` of a step's time."""
    return moved / (share * (t_model + t_attention))


def staggered(
    batches: int, t_model: float, t_attention: float, rounds: int = 40
) -> tuple[float, float]:
    """Idle shares of n - 1 model replicas and one pool of attention workers that n batches share.

    Batch i begins at i t_model / (n - 1); each goes from a replica to the pool and back. Both are
    busy all the time where t_attention = t_model / (n - 1).

    >>> [round(x, 6) for x in staggered(4, 3.0, 1.0)]
    [0.0, 0.0]
    """
    if batches < 2:
        fail(ValueRangeError, "batches", batches, "2 or more", "one batch leaves one side idle")
    replicas, pool = [0.0] * (batches - 1), [0.0]
    waiting = [(i * t_model / (batches - 1), i, 0) for i in range(batches)]
    used: tuple[list[tuple[float, float]], ...] = ([], [])
    for _ in range(2 * rounds * batches):
        ready, i, stage = heapq.heappop(waiting)
        servers, takes = (pool, t_attention) if stage else (replicas, t_model)
        begin = max(ready, heapq.heappop(servers))
        heapq.heappush(servers, begin + takes)
        used[stage].append((begin, begin + takes))
        heapq.heappush(waiting, (begin + takes, i, 1 - stage))
    end = min(max(b for _, b in x) for x in used)
    first, last = end / 4, 3 * end / 4  # away from the beginning and the end
    busy = [sum(max(0.0, min(b, last) - max(a, first)) for a, b in x) for x in used]
    room = last - first
    return 1 - busy[0] / (room * (batches - 1)), 1 - busy[1] / room


__all__ = ["AttentionWorkers", "Remote", "bandwidth", "staggered", "wire_bytes"]
