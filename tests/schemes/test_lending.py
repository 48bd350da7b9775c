"""Blocks on any worker: what comes of them is what comes of one memory, and debts add up."""

import random

import pytest
import torch

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.support import Causal, Sinks, Window
from regard.run.runner import run
from regard.schemes.lending import LentMemory, NoRoomError, Workers, message_bytes


def attended(memory: LentMemory, q: torch.Tensor, rule: Rule) -> torch.Tensor:
    return run(Call(q, memory.keys(), rule.shift(memory.seen - q.shape[2])), ("lse",)).out


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_lent_blocks_are_one_memory(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    pick = random.Random(seed)
    workers = Workers([pick.randint(1, 4) for _ in range(5)] + [9], block=pick.choice((1, 3, 8)))
    memory = workers.request(owner=pick.randrange(5))
    room = sum(workers.rooms) * workers.block
    # In float64: at logits of 1e4 a float32 has no digits left to compare.
    k, v = (torch.randn(1, 2, room, x, dtype=torch.float64) for x in (8, 6))
    rule = Rule(pick.choice((Causal(), Causal() & (Window(5) | Sinks(2)))))
    at = 0
    while at < room:
        n = min(pick.choice((1, 1, 2, 7)), room - at)
        memory.extend(k[:, :, at : at + n], v[:, :, at : at + n])
        at += n
        q = scale * torch.randn(1, 4, n, 8, dtype=torch.float64)
        whole = run(Call(q, Dense(k[:, :, :at], v[:, :, :at]), rule.shift(at - n))).out
        torch.testing.assert_close(attended(memory, q, rule), whole, atol=1e-9, rtol=1e-9)
        assert sum(workers.balance()) == 0
        assert all(held <= top for held, top in zip(workers.held, workers.rooms, strict=True))
    with pytest.raises(NoRoomError, match="a free block"):
        memory.extend(k[:, :, :1], v[:, :, :1])
    memory.free()
    assert workers.owed == {}
    assert workers.held == [0] * 6


def test_a_request_longer_than_a_worker_completes_and_messages_do_not_grow() -> None:
    workers = Workers(capacity=2, workers=4, block=8)
    one, other = workers.request(0), workers.request(1)
    k = torch.randn(1, 2, 32, 4)
    one.extend(k, k)
    other.extend(k[:, :, :8], k[:, :, :8])
    q = torch.randn(1, 4, 1, 4)
    few = message_bytes(Call(q, one.keys()))
    one.extend(k[:, :, :16], k[:, :, :16])
    many = message_bytes(Call(q, one.keys()))
    assert set(few) == set(many) == {4 * 4 * (4 + 4 + 1)}
    assert one.blocks[-1][0] == 0, "the newest block is on the own worker"
    assert sum(workers.balance()) == 0
    one.free()
    assert workers.held == [0, 1, 0, 0]
