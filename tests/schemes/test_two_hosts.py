"""Ranks on two hosts equal one process: network namespaces that only a virtual cable joins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CABLE, ADDRESSES = "cable", ("10.213.7.1", "10.213.7.2")
PER_HOST, LIMIT = 2, 240


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces and the cable between them; they are gone afterwards."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs network namespaces: the `ip` command of Linux")
    names = [f"regard-{uuid.uuid4().hex[:8]}-{x}" for x in "ab"]
    made = []
    try:
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
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield names
    finally:
        for name in made:  # the cable goes with its ends
            ip("netns", "del", name)


def through_the_cable(host: str) -> int:
    """Bytes that a host sent over the cable, frames and all."""
    table = ip("netns", "exec", host, "cat", "/proc/net/dev").stdout
    (line,) = [x for x in table.splitlines() if x.strip().startswith(f"{CABLE}:")]
    return int(line.split(":")[1].split()[8])


def test_ranks_on_two_hosts_equal_one_process(hosts: list[str], tmp_path: Path) -> None:
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": CABLE,
    }  # fmt: skip
    started: list[subprocess.Popen[str]] = []
    said = []
    try:
        for number, host in enumerate(hosts):
            command = [
                "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
                "--nnodes=2", f"--node-rank={number}", f"--nproc-per-node={PER_HOST}",
                f"--master-addr={ADDRESSES[0]}", "--master-port=29500",
                "-m", "tests.schemes.on_two_hosts", str(tmp_path),
            ]  # fmt: skip
            started.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        said = [one.communicate(timeout=LIMIT)[0] for one in started]
    finally:
        for one in started:
            if one.poll() is None:
                one.terminate()  # torchrun ends its ranks
                one.wait(20)
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)[-3000:]
    ranks = [json.loads((tmp_path / f"rank{r}").read_text()) for r in range(2 * PER_HOST)]
    for one in ranks:
        assert one["wrong"] == {"ring": [], "heads": [], "tree": []}, one
    # The other host was reached by the cable, and what is counted is what it carried.
    for number, host in enumerate(hosts):
        mine = [r for r, one in enumerate(ranks) if int(one["host"]) == number]
        counted = sum(
            x for r in mine for to, x in enumerate(ranks[r]["sent"]) if to not in mine
        )  # fmt: skip
        carried = through_the_cable(host)
        assert counted > 2**20, ranks
        assert counted <= carried <= 1.1 * counted + 2**19, (counted, carried)
