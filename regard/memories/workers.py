"""Worker processes that keep keys and attend to them, and their messages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, fail
from regard.core.keys import Dense
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.core.support.bands import need_count
from regard.memories.kept import Kept
from regard.memories.wire import KEY, Line, WireError, new_key
from regard.run.api import partial

if TYPE_CHECKING:
    from regard.memories.remote import Remote


def serve(handle: int, parent: int) -> None:
    """Keep keys and attend to them until the other end of a socket closes, or its process ends.

    The key of the line is read from standard input, where process listings do not show it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    line = Line(socket.socket(fileno=handle), sys.stdin.buffer.read(KEY), first=False)
    torch.set_num_threads(1)
    kept: dict[int, Kept] = {}
    broken: dict[int, str] = {}
    with torch.no_grad():
        while True:
            try:
                asked = line.receive()
                _answer(line, asked, kept, broken)
            except (EOFError, OSError):
                return


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _answer(
    line: Line, asked: dict[str, Any], kept: dict[int, Kept], broken: dict[int, str]
) -> None:
    """Execute a request; an error is sent with the next answer about the same keys."""
    what, name, found = asked["what"], asked["name"], None
    try:
        if what == "attend":
            found = _attended(line, asked, kept)
        elif what == "append":
            kept.setdefault(name, Kept()).extend(asked["k"], asked["v"], asked["keep"])
        elif what == "read":
            read = kept[name].read()
            found = [read.k, read.v]
        elif what == "free":
            kept.pop(name, None)
            broken.pop(name, None)
        elif name in kept:
            steps: dict[str, Any] = {"crop": kept[name].crop, "reorder": kept[name].reorder}
            steps[what](asked["told"])
    except (EOFError, OSError):
        raise
    except Exception as error:
        broken.setdefault(name, f"{type(error).__name__}: {error}")
    if what in ("attend", "read"):
        line.send({"found": None if name in broken else found, "wrong": broken.get(name)})


def _attended(line: Line, asked: dict[str, Any], kept: dict[int, Kept]) -> list[Tensor]:
    memory = kept.setdefault(asked["name"], Kept())
    q, rule, parts = asked["q"], None, []
    try:
        # Attend to the kept keys while the new ones are in transit.
        rule = Rule.from_json(asked["rule"])
        parts = [_partial(q, memory.read(), rule)] if memory.seen else []
    finally:
        new = line.receive()
    k, v, keep = new["k"], new["v"], asked["keep"]
    at = torch.arange(k.shape[2]).expand(len(k), -1)
    at = at if keep is None else torch.where(keep, at, -1)
    parts.append(_partial(q, Dense(k, v, at), rule.replace(support=Causal())))
    memory.extend(k, v, keep)
    return [merge(*parts).out]


def _partial(q: Tensor, read: Dense, rule: Rule) -> Partial:
    found: Partial = partial(q, read.k, read.v, rule, k_positions=read.positions)
    return found


class AttentionWorkers:
    """Processes that keep the keys of some heads each, and attend to them.

    `remote()` builds a memory whose keys are there. `sent` counts the bytes of queries, keys and
    values sent, `received` those of outputs. Use it as a context manager, or `close` it; the
    workers end with this process in any case.

    Threads may share the workers, each with its own memories: exchanges of messages take turns.
    Another process may not: after a fork, start workers there. After an interrupted exchange the
    workers' answers are out of step, so they are refused.
    """

    def __init__(self, workers: int = 2) -> None:
        need_count("workers", workers)
        # Plain processes: multiprocessing runs the caller's script again, and daemonic workers
        # may not start children.
        code = (
            "import sys; from regard.memories.workers import serve; "
            "serve(int(sys.argv[1]), int(sys.argv[2]))"
        )
        around = {**os.environ, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
        self.lines: list[Line] = []
        self._processes: list[Any] = []
        for _ in range(workers):
            ours, theirs = socket.socketpair()
            handle, key = theirs.fileno(), new_key()
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(handle), str(os.getpid())],
                pass_fds=[handle], env=around, stdin=subprocess.PIPE,
            )  # fmt: skip
            theirs.close()
            assert process.stdin is not None
            process.stdin.write(key)
            process.stdin.close()
            self._processes.append(process)
            self.lines.append(Line(ours, key, first=True))
        self._names = count()
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._broken = ""
        self.sent = self.received = 0
        self.close = weakref.finalize(self, _end, self.lines, self._processes, os.getpid())

    def __enter__(self) -> AttentionWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remote(self) -> Remote:
        """Build a memory whose keys are kept by the workers."""
        from regard.memories.remote import Remote

        return Remote(self, next(self._names))

    def parts(self, heads: int) -> list[slice]:
        """Divide key heads among the workers, consecutive ones for each."""
        if heads < len(self.lines):
            fail(
                CapabilityError, "workers", len(self.lines), f"up to {heads}, the key heads",
                "start fewer workers",
            )  # fmt: skip
        cuts = [heads * i // len(self.lines) for i in range(len(self.lines) + 1)]
        return [slice(a, b) for a, b in pairwise(cuts)]

    def tell(self, *messages: Sequence[dict[str, Any]]) -> None:
        """Send messages, each with one part for each worker; there is no answer."""
        with self._exchange():
            self._send(messages)

    def ask(self, *messages: Sequence[dict[str, Any]]) -> list[list[Tensor]]:
        """Send messages, and return the tensors of each worker's answer."""
        with self._exchange():
            self._send(messages)
            answers = [line.receive() for line in self.lines]
        wrong = next((x["wrong"] for x in answers if x["wrong"] is not None), None)
        if wrong is not None:
            fail(
                CapabilityError, "workers", f"one that failed ({wrong})", "an answer",
                "free the memory, and read the text again",
            )  # fmt: skip
        self.received += sum(x.nbytes for answer in answers for x in answer["found"])
        return [answer["found"] for answer in answers]

    def _send(self, messages: Sequence[Sequence[dict[str, Any]]]) -> None:
        for message in messages:
            for line, part in zip(self.lines, message, strict=True):
                line.send(part)
                held = [part[name] for name in ("q", "k", "v") if name in part]
                self.sent += sum(x.nbytes for x in held)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Let one thread at a time exchange messages; an interruption breaks the workers."""
        if os.getpid() != self._owner:
            self._refuse("workers of another process")
        with self._lock:
            if self._broken:
                self._refuse(self._broken)
            self._broken = "workers whose last exchange was interrupted"
            try:
                yield
            except (EOFError, OSError) as error:
                codes = [p.poll() for p in self._processes]
                if not isinstance(error, WireError):
                    self._broken = f"a worker that ended (exit codes {codes})"
                    self._refuse(self._broken)
                raise
            self._broken = ""

    def _refuse(self, got: str) -> NoReturn:
        fail(
            CapabilityError, "workers", got, "running workers of this process",
            "start workers and the text again: its keys are lost",
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionWorkers:
        return self


def _end(lines: Sequence[Line], processes: Sequence[Any], owner: int) -> None:
    if os.getpid() != owner:  # a fork has copies of the sockets, but no workers
        return
    for line in lines:
        line.close()
    for process in processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
