"""Key files and processes: forks see what was when they parted, and the killed leave nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.memories import Kept, Mapped, key_files
from regard.memories.key_files import KeyFile, sweep

FORK = multiprocessing.get_context("fork")


def tokens(n: int, value: float) -> torch.Tensor:
    return torch.full((1, 2, n, 4), value)


def values(store: Mapped) -> list[float]:
    return store.read()[0, 0, :, 0].tolist()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6)),
        st.tuples(st.just("crop"), st.integers(0, 9)),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def drive(store: Mapped, listed: list[float], steps: list[tuple[str, int]], value: float) -> None:
    for what, n in steps:
        if what == "append":
            store.append(tokens(n, value))
            listed += [value] * n
        else:
            store.crop(max(len(listed) - n, 1))
            del listed[max(len(listed) - n, 1) :]
        assert values(store) == listed


@given(before=STEPS, parent=STEPS, child=STEPS)
def test_parent_and_child_do_not_see_what_the_other_writes(
    before: list[Any], parent: list[Any], child: list[Any]
) -> None:
    """Whatever each appends and crops, and whoever goes on first."""
    store, listed = Mapped(), [0.0]
    store.append(tokens(1, 0.0))
    drive(store, listed, before, 1.0)

    def work(line: Any) -> bool:
        own = list(listed)
        assert line.recv() == "the parent has written"
        assert values(store) == own
        drive(store, own, child, 3.0)
        return values(store) == own

    ours, theirs = FORK.Pipe()
    one = FORK.Process(target=lambda: theirs.send(work(theirs)))
    one.start()
    drive(store, listed, parent, 2.0)
    ours.send("the parent has written")
    assert ours.poll(60)
    assert ours.recv() is True
    one.join()
    assert values(store) == listed


SCRIPT = """
import os, sys, time, torch
from regard.memories import Mapped
store = Mapped({folder!r})
store.append(torch.ones(1, 2, 3, 4))
if {fork}:
    if os.fork() == 0:
        sys.exit(0)  # runs what is registered for the end of a process
    os.wait()
store.append(torch.ones(1, 2, 100_000, 4))
print(float(store.read().sum()), flush=True)
time.sleep({sleep})
"""


def script(folder: Path, *, fork: bool = False, sleep: float = 0.0) -> subprocess.Popen[str]:
    code = SCRIPT.format(folder=str(folder), fork=fork, sleep=sleep)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_child_that_exits_leaves_its_parent_its_files(tmp_path: Path) -> None:
    one = script(tmp_path, fork=True)
    assert one.communicate(timeout=120)[0] == f"{100_003 * 8.0}\n"
    assert one.returncode == 0
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_process_are_swept_and_those_of_others_stay(tmp_path: Path) -> None:
    killed, going = script(tmp_path, sleep=60), script(tmp_path, sleep=60)
    try:
        for one in (killed, going):
            assert one.stdout is not None
            assert one.stdout.readline()
        assert len(list(tmp_path.glob("*/*.keys"))) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        memory = Kept(lambda: Mapped(tmp_path))
        memory.extend(tokens(2, 1.0), tokens(2, 1.0))
        assert len(list(tmp_path.glob("*/*.keys"))) == 3  # two of ours, and of the one that goes on
        del memory
        assert len(list(tmp_path.glob("*/*.keys"))) == 1
    finally:
        going.kill()
        going.wait()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_being_made_is_not_swept(tmp_path: Path) -> None:
    young, old = tmp_path / f"{key_files.PREFIX}young", tmp_path / f"{key_files.PREFIX}old"
    for home in (young, old):
        home.mkdir()
    os.utime(old, (time.time() - 2 * key_files.UNLOCKED,) * 2)
    file = KeyFile(tmp_path)
    assert young.exists()
    assert not old.exists()
    assert file.path.stat().st_mode & 0o077 == 0


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    from regard.memories.mapped import DiskError

    with pytest.raises(DiskError, match="folder"):
        Mapped(tmp_path / "nowhere").append(tokens(1, 0.0))
