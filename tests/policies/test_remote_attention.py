"""Attention in other processes: the same tokens, the bytes that were promised, no key here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.memories.remote import AttentionWorkers, bandwidth, staggered, wire_bytes
from regard.policies.remote_attention import RemoteAttention
from tests.architectures import DECODERS, build

IDS = torch.randint(5, 60, (2, 30), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[0, :7] = 0
NEW: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None,
                       "pad_token_id": 0}  # fmt: skip


@pytest.fixture(scope="module")
def workers() -> Any:
    with AttentionWorkers(2) as made:
        yield made


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 8}, {"attention_mask": REAL}], ids=str
)
def test_tokens_are_the_same(how: dict[str, Any], workers: Any, model: Any) -> None:
    plain = model.generate(IDS, **NEW, **how)
    with regard.shrink(model, RemoteAttention(workers=workers), check=False) as shrunk:
        assert torch.equal(model.generate(IDS, **NEW, **how), plain)
        assert all(layer.memory.nbytes <= 2 * 38 * 8 * 3 for layer in shrunk.stage.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_step_are_those_of_the_formula(workers: Any, dtype: torch.dtype) -> None:
    memory = workers.remote()
    q, k = torch.randn(3, 8, 20, 16).to(dtype), torch.randn(3, 2, 20, 16).to(dtype)
    memory.append(k, k)
    whole = [memory.attend(q)]
    for _ in range(5):
        before = workers.sent + workers.received
        q1, k1 = torch.randn(3, 8, 1, 16).to(dtype), torch.randn(3, 2, 1, 16).to(dtype)
        memory.append(k1, k1)
        whole.append(memory.attend(q1))
        q, k = torch.cat((q, q1), 2), torch.cat((k, k1), 2)
        moved = workers.sent + workers.received - before
        assert moved == wire_bytes(8, 2, 16, 3, 1, dtype.itemsize)
    plain = regard.attend(q, k, k, regard.Causal())
    within = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(torch.cat(whole, 2), plain, atol=within, rtol=within)
    assert torch.equal(memory.read().k, k)
    memory.free()


def test_both_sides_are_busy_where_times_match() -> None:
    for n in (2, 3, 5):
        assert max(staggered(n, 1.0, 1.0 / (n - 1))) < 1e-6
    model, pool = staggered(4, 3.0, 2.0)  # the pool is the narrow place
    assert model > 0.4
    assert pool < 1e-6
    assert bandwidth(100.0, 3.0, 1.0, share=0.25) == 100.0


def test_wrong_uses_are_told(workers: Any) -> None:
    memory = workers.remote()
    x = torch.randn(1, 2, 3, 4)
    memory.append(x, x)
    with pytest.raises(RegardError, match="one for each token"):
        memory.attend(x[:, :, :2])
    with pytest.raises(CapabilityError, match="causal softmax"):
        memory.attend(x, regard.Rule(regard.Window(2)))
    with pytest.raises(CapabilityError, match="key heads"):
        workers.parts(1)
    dead = AttentionWorkers(1)
    other = dead.remote()
    other.append(x, x)
    dead._processes[0].kill()
    dead._processes[0].wait()
    with pytest.raises(CapabilityError, match="one that ended"):
        other.attend(x)
    dead.close()
