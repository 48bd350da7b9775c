"""A rank of test_two_hosts.py, started by torchrun: three calls of the law, and what it sent."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from regard.core.rule import Rule
from regard.core.support import Causal, Window, documents_from_lengths
from regard.schemes import Contiguous, ZigZag, peers_of, traffic
from tests.schemes.cases import Case, check

# An odd number of tokens, in four documents.
TOKENS, LENGTHS = 1203, [400, 17, 500, 286]


class Chosen(Case):
    """A call of the law that is written down, in place of one that is generated."""

    def __init__(self, scheme: str, world: int) -> None:
        torch.manual_seed(0)
        self.seed, self.world, self.scheme, self.dtype = 0, world, scheme, torch.float32
        self.b, self.g, self.h, self.m, self.d, self.e = 1, 3, 6, TOKENS, 32, 24
        self.learned, self.real = [], None
        self.n = 2 if scheme == "tree" else TOKENS
        self.first = self.m - self.n
        documents = documents_from_lengths(LENGTHS)
        self.rule, self.layout = {
            "ring": (Rule(Causal() & Window(300) & documents), ZigZag(TOKENS, world)),
            "heads": (Rule(Causal()), Contiguous(TOKENS, world)),
            "tree": (Rule(Causal()), Contiguous(TOKENS, world)),
        }[scheme]
        self.q, self.d_out = (torch.randn(1, 6, self.n, x) for x in (32, 24))
        self.k, self.v = (torch.randn(1, 3, TOKENS, x) for x in (32, 24))
        self.d_lse = torch.randn(1, 6, self.n)


def main(folder: Path) -> None:
    """Run the calls; write what differs, and the bytes that went to each rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    peers = peers_of(None)
    found: dict[str, Any] = {"host": os.environ["GROUP_RANK"], "wrong": {}}
    with traffic() as sent:
        for scheme in ("ring", "heads", "tree"):
            found["wrong"][scheme] = check(Chosen(scheme, peers.world), peers)
    found["sent"] = [sent.bytes[rank] for rank in range(peers.world)]
    (folder / f"rank{peers.rank}").write_text(json.dumps(found), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
