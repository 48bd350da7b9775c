"""Ranks on two hosts equal one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.schemes.hosts import NotPermittedError, carried, torchrun, two_hosts

PER_HOST = 2


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    with ExitStack() as stack:
        try:
            names = stack.enter_context(two_hosts())
        except NotPermittedError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield names


def test_ranks_on_two_hosts_equal_one_process(hosts: list[str], tmp_path: Path) -> None:
    torchrun(hosts, PER_HOST, "tests.schemes.on_two_hosts", str(tmp_path), limit=240)
    ranks = [json.loads((tmp_path / f"rank{r}").read_text()) for r in range(2 * PER_HOST)]
    for one in ranks:
        assert one["wrong"] == {"ring": [], "heads": [], "tree": []}, one
    # The other host was reached by the cable, and what is counted is what it carried.
    for number, host in enumerate(hosts):
        mine = [r for r, one in enumerate(ranks) if int(one["host"]) == number]
        counted = sum(
            x for r in mine for to, x in enumerate(ranks[r]["sent"]) if to not in mine
        )  # fmt: skip
        assert counted > 2**20, ranks
        assert counted <= carried(host) <= 1.1 * counted + 2**19, (counted, carried(host))
