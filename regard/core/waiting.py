"""Wait for other processes so that Ctrl-C is seen, whenever it comes.

Python notes a signal and handles it between two steps of the main thread. One that comes just
before a wait begins, or that the system delivers to another thread, ends no wait: a wait without
an end then lasts as long as the processes do. So every wait here looks up now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import cast

# Seconds between two looks for Ctrl-C.
LOOK = 0.5


def wait_for_any(lines: Sequence[Connection]) -> list[Connection]:
    """Return those connections that have something to read, or that were closed; at least one.

    >>> from multiprocessing import Pipe
    >>> far, near = Pipe(duplex=False)
    >>> near.send("news")
    >>> wait_for_any([far]) == [far], far.recv()
    (True, 'news')
    """
    while lines:
        ready = wait(lines, LOOK)
        if ready:
            return cast("list[Connection]", ready)
    return []
