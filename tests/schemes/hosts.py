"""Hosts on one machine: network namespaces that only a virtual cable joins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CABLE, ADDRESSES = "cable", ("10.213.7.1", "10.213.7.2")


class NotPermittedError(Exception):
    """This machine, or this user, may not make network namespaces."""


def ip(*words: str) -> str:
    """Run `ip`, and return what it printed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise NotPermittedError(f"ip {words[0]}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def two_hosts(megabits: int | None = None) -> Iterator[list[str]]:
    """Yield the names of two hosts, joined by a cable of so many Mbit/s; gone afterwards."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        raise NotPermittedError("no `ip` command")
    names = [f"regard-{uuid.uuid4().hex[:8]}-{x}" for x in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        far = ("peer", CABLE, "netns", names[1])
        ip("-n", names[0], "link", "add", CABLE, "type", "veth", *far)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
            for link in ("lo", CABLE):
                ip("-n", name, "link", "set", link, "up")
            if megabits is not None:
                rate = ("rate", f"{megabits}mbit", "burst", "256kb", "latency", "400ms")
                ip("netns", "exec", name, "tc", "qdisc", "add", "dev", CABLE, "root", "tbf", *rate)
        yield names
    finally:
        for name in made:  # the cable goes with its ends
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


def torchrun(hosts: Sequence[str], per_host: int, module: str, *args: str, limit: float) -> str:
    """Run a module by torchrun on every host, as on machines; return what they wrote.

    A host that is not done in time is stopped, with its ranks.
    """
    root = str(Path(__file__).parents[2])
    env = {
        **os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE,
    }  # fmt: skip
    started: list[subprocess.Popen[str]] = []
    try:
        for number, host in enumerate(hosts):
            command = [
                "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
                f"--nnodes={len(hosts)}", f"--node-rank={number}", f"--nproc-per-node={per_host}",
                f"--master-addr={ADDRESSES[0]}", "--master-port=29500", "-m", module, *args,
            ]  # fmt: skip
            started.append(
                subprocess.Popen(
                    command, cwd=root, env=env, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        said = "\n".join(one.communicate(timeout=limit)[0] for one in started)
    finally:
        for one in started:
            if one.poll() is None:
                one.terminate()  # torchrun ends its ranks
                one.wait(20)
    if any(one.returncode for one in started):
        raise RuntimeError(said[-3000:])
    return said


def carried(host: str) -> int:
    """Bytes that a host sent over the cable, frames and all."""
    table = ip("netns", "exec", host, "cat", "/proc/net/dev")
    (line,) = [x for x in table.splitlines() if x.strip().startswith(f"{CABLE}:")]
    return int(line.split(":")[1].split()[8])
