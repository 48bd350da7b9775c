"""A program with toy checks, for the tests of the runner: `python toy_checks.py FOLDER JOBS`.

Worker processes import it again, and so find the same checks. It prints a line for each event.
"""

import os
import sys
import time
from contextlib import closing
from pathlib import Path

from regard.papers import checks as checks_module
from regard.papers import standing
from regard.papers.checks import Measured, check

checks_module._load = lambda: None
standing.discover = lambda: {}
WAIT = float(os.environ.get("TOY_WAIT", "0"))


@check("moh")
def holds():
    return Measured("holds", True, {"one": 1.0})


@check("mqa")
def fails():
    return Measured("fails", False, {"two": 2.0})


@check("mhe")
def raises():
    raise RuntimeError("on purpose")


@check("mlkv")
def dies():
    os._exit(9)


@check("titans")
def waits():
    time.sleep(WAIT)
    return Measured("waits", True, {"pid": os.getpid()})


if __name__ == "__main__":
    from regard.papers.runner import run

    keys = sys.argv[3].split(",")
    with closing(run(keys, jobs=int(sys.argv[2]), folder=Path(sys.argv[1]))) as events:
        try:
            for event in events:
                last = event.trace.strip().splitlines()[-1:] or [""]
                print(*filter(None, (event.what, event.key, last[0])), flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            sys.exit(130)
