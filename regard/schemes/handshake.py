"""The handshake: before the first message of a call, ranks check that they agree on the call."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.hashes import hash_of
from regard.core.rule import Rule
from regard.schemes.messages import Peers, fail_peer

# Bytes of a field: a hash, and the start of the hashed text, for errors.
HASH, SHOWN = 16, 112
FIELDS = ("step", "scheme", "rule", "lengths", "dtype", "shape", "torch")
SIZE = len(FIELDS) * (HASH + SHOWN)


class Meant(NamedTuple):
    """What a rank is about to do, as fields of text."""

    step: str
    scheme: str
    rule: str
    lengths: str
    dtype: str
    shape: str
    torch: str

    @staticmethod
    def by(call: Call, peers: Peers, scheme: str, lengths: str) -> Meant:
        """Describe a call by everything that decides which messages are sent."""
        _, g, _, d, e = call.keys.shape
        shape = f"b={call.b} h={call.h} g={g} d={d} e={e}"
        grad = " with gradients" if call.needs_grad else ""
        return Meant(
            f"call {peers.calls}", scheme + grad, _text(call.rule), lengths,
            f"{call.q.dtype} on {call.q.device.type}", shape, torch.__version__,
        )  # fmt: skip


def _text(rule: Rule) -> str:
    """Write a rule as text, with a hash of the tensors that decide which pairs attend."""
    held = rule.support.memo(
        "hash of tensors",
        lambda: hash_of([x.detach().cpu() for x in rule.support.tensors()]),
    )
    # The repr of a function has its address, which differs between processes.
    said = re.sub(r" at 0x[0-9a-f]+", "", str(rule))
    return f"{said} {held if rule.support.tensors() else ''}".strip()


def packed(meant: Meant) -> Tensor:
    """Pack the description in SIZE bytes, whatever its length."""
    made = bytearray()
    for text in meant:
        made += hashlib.sha256(text.encode()).digest()[:HASH]
        made += text.encode()[:SHOWN].ljust(SHOWN, b"\0")
    return torch.frombuffer(made, dtype=torch.uint8).clone()


def shake(meant: Meant, peers: Peers, device: torch.device) -> None:
    """Compare the descriptions of all ranks; an error names both ranks and the difference."""
    peers.calls += 1
    if peers.world == 1:
        return
    own = packed(meant)
    given = own if peers.on_cpu else own.to(device)
    what = f"the handshake of {meant.scheme} ({meant.step})"
    found = peers.everyone(given, what, handshake=True).cpu().view(peers.world, len(FIELDS), -1)
    mine = found[peers.rank, :, :HASH]
    for rank in range(peers.world):
        for place, name in enumerate(FIELDS):
            if not torch.equal(found[rank, place, :HASH], mine[place]):
                theirs = bytes(found[rank, place, HASH:].tolist()).rstrip(b"\0")
                fail_peer(
                    peers.number(rank),
                    f"another {name}: {theirs.decode(errors='replace')}",
                    f"{meant[place][:SHOWN]}, as on rank {peers.number(peers.rank)}",
                    f"give every rank the same {name}",
                )
