"""A program with toy checks, for the tests of the runner: `python toy_checks.py FOLDER JOBS`.

Worker processes import it again, and so find the same checks. It prints a line for each event.
"""

import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from regard.papers import checks as checks_module
from regard.papers import standing, trial
from regard.papers.checks import check
from regard.papers.claims import claim

# A shell that starts tests in the background has them ignore interrupts, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
checks_module._load = lambda: None
standing.discover = lambda: {}
trial.hashes = lambda key: ("a", "b")
# No sentence of the catalogue is asked for: a toy answers its own.
trial.sentence_of = lambda words, asked: words
WAIT = float(os.environ.get("TOY_WAIT", "0"))


@check("moh")
def holds():
    yield claim("toy", "one", 1.0).equals(1.0, "one")


@check("mqa")
def fails():
    yield claim("toy", "two", 2.0).below(1.0, "one")


@check("mhe")
def raises():
    yield claim("toy", "one", 1.0).equals(1.0, "one")
    raise RuntimeError("on purpose")


@check("mlkv")
def dies():
    os._exit(9)
    yield


@check("titans")
def waits():
    time.sleep(WAIT)
    yield claim("toy", "pid", os.getpid()).above(0, "none")


def interrupt():
    """Note Ctrl-C while the main thread waits, and let it wait on, as one in bad time does."""
    time.sleep(3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


if __name__ == "__main__":
    from regard.papers.check_runner import run

    keys = sys.argv[3].split(",")
    with closing(run(keys, jobs=int(sys.argv[2]), folder=Path(sys.argv[1]))) as events:
        try:
            for event in events:
                last = event.trace.strip().splitlines()[-1:] or [""]
                print(*filter(None, (event.what, event.key, last[0])), flush=True)
                if f"{event.what} {event.key}" == os.environ.get("TOY_INTERRUPT"):
                    threading.Thread(target=interrupt).start()
        except KeyboardInterrupt:
            print("stopped", flush=True)
            sys.exit(130)
