"""Ctrl-C ends every wait for other processes, whenever it comes and whichever thread gets it."""

import ast
import signal
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

import regard
from regard.core.waiting import wait_for_any

HOME = Path(regard.__file__).parent


class Noted(Exception):
    """What the handler of the signal raises."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_a_signal_that_ends_no_wait_is_seen():
    """The system may deliver it to another thread, or just before the wait: it is only noted."""
    far, near = Pipe(duplex=False)
    ended, gave_up = threading.Event(), threading.Event()

    def elsewhere():
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        if not ended.wait(60):
            gave_up.set()
            near.send("nothing came")

    def raise_it(*_):
        raise Noted

    before = signal.signal(signal.SIGUSR1, raise_it)
    other = threading.Thread(target=elsewhere)

    def wait():
        other.start()
        wait_for_any([far])

    try:
        with pytest.raises(Noted):
            wait()
    finally:
        ended.set()
        other.join()
        signal.signal(signal.SIGUSR1, before)
    assert not gave_up.is_set()


def test_what_is_closed_is_ready_and_nothing_is_waited_for_in_vain():
    (one, near), (other, _far) = Pipe(duplex=False), Pipe(duplex=False)
    near.close()
    assert wait_for_any([one, other]) == [one]
    assert wait_for_any([]) == []


def test_processes_are_waited_for_in_one_place():
    """No other module waits for connections by itself, where it could forget to look up."""
    found = set()
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            home = node.module if isinstance(node, ast.ImportFrom) else ""
            if home == "multiprocessing.connection" and "wait" in {x.name for x in node.names}:
                found.add(path.relative_to(HOME).as_posix())
    assert found == {"core/waiting.py"}
