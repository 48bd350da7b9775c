"""Conversations in tiers: nothing lost but what was dropped, and a turn is the whole history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.memories.memory_files import load, save
from regard.memories.tiers import RecomputeCost, Tiers, least_recent, per_idle_time
from regard.serving.conversations import flops_of_chunks
from tests.architectures import DECODERS, PAIRS, build

TOKEN = 2 * 3 * 2 * 4 * 4  # 3 layers, 2 heads of 4, float32
ROOM = st.sampled_from([0, 5, 12, 40, None])


def keys(n: int) -> Any:
    return torch.randn(2, 3, 2, n, 4)


@given(
    turns=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20)), min_size=1, max_size=12),
    rooms=st.tuples(ROOM, ROOM, ROOM), worth=st.sampled_from([per_idle_time, least_recent]),
    size=st.integers(1, 9),
)  # fmt: skip
def test_what_is_left_is_the_end_of_what_came(
    turns: list[tuple[str, int]], rooms: tuple[Any, ...], worth: Any, size: int
) -> None:
    bytes_ = [None if x is None else x * TOKEN for x in rooms]
    bytes_[2] = None if rooms[2] is None else rooms[2] * (1 << 16)  # a file has room to grow
    tiers, held = Tiers(*bytes_, size=size, worth=worth), {}
    for now, (name, n) in enumerate(turns):
        k, v = keys(n)
        if name in tiers:
            start, old_k, old_v = tiers.take(name)
            whole_k, whole_v = held[name]
            if old_k is None:
                assert start == whole_k.shape[2]
            else:
                assert torch.equal(old_k, whole_k[:, :, start:])
                assert torch.equal(old_v, whole_v[:, :, start:])
            k, v = torch.cat((whole_k, k), 2), torch.cat((whole_v, v), 2)
        held[name] = (k, v)
        tiers.put(name, k, v, now=float(now))
        for tier, limit in tiers.limits.items():
            assert limit is None or tiers.used(tier) <= limit
        for other, (whole_k, _) in held.items():
            assert sum(tiers.where(other).values()) == whole_k.shape[2]
    plain = Tiers(size=size)
    plain.restore(tiers.state())
    assert {n: plain.where(n).get("dropped", 0) for n in held} == {
        n: tiers.where(n).get("dropped", 0) for n in held
    }


def test_the_first_chunks_of_the_longest_idle_go_first() -> None:
    tiers = Tiers(device=10 * TOKEN, host=4 * TOKEN, disk=0, size=2, ahead=0.0)
    tiers.put("old", *keys(8), now=0.0)
    tiers.put("new", *keys(8), now=50.0)
    tiers.settle(60.0)
    assert tiers.where("old") == {"dropped": 2, "host": 4, "device": 2}
    assert tiers.where("new") == {"device": 8}


def test_copies_go_ahead_of_need() -> None:
    tiers = Tiers(device=16 * TOKEN, host=None, size=2, ahead=0.5)
    tiers.put("a", *keys(14), now=0.0)
    assert (tiers.used("device"), tiers.used("host")) == (14 * TOKEN, 6 * TOKEN)
    tiers.put("b", *keys(8), now=1.0)  # the copied chunks are let go of
    assert tiers.where("a") == {"host": 6, "device": 8}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    rooms=st.tuples(ROOM, ROOM), disk=st.sampled_from([0, None]),
)  # fmt: skip
@torch.no_grad()
def test_a_turn_is_the_whole_history(
    name: str, lengths: list[int], rooms: tuple[Any, ...], disk: Any
) -> None:
    torch.manual_seed(0)
    made = build(name, DECODERS[name], causal=True)
    token = 2 * 2 * 2 * 8 * 4
    tiers = Tiers(*(None if x is None else x * token for x in rooms), disk, size=4)
    talks = regard.Conversations(made, tiers=tiers)
    ids, done = torch.randint(3, 60, (1, sum(lengths))), 0
    for n in lengths:
        logits = talks.say("ann", ids[:, done : done + n])
        done += n
        whole = made(ids[:, :done], use_cache=False).logits[:, -n:]
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-4)
    assert talks.history("ann") == ids[0].tolist()


def test_generated_turns_are_those_of_one_text(model: Any) -> None:
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    talks = regard.Conversations(model, tiers=Tiers(9 * 256, 0, size=4))
    said: list[int] = []
    for turn in ([5, 6, 7, 8], [9, 10], [11]):
        said += turn
        new = talks.generate("ann", turn, **how)
        plain = model.generate(torch.tensor([said]), **how)[0, len(said) :]
        assert torch.equal(new, plain)
        said += new.tolist()
        assert talks.history("ann") == said
    assert 0 < talks.again < talks.run


def test_a_turn_that_breaks_leaves_the_conversation_as_it_was(model: Any) -> None:
    talks = regard.Conversations(model)
    first = talks.say("ann", [5, 6, 7])
    with pytest.raises(ValueError, match="model_kwargs"):
        talks.generate("ann", [8], nonsense=3)
    assert talks.history("ann") == [5, 6, 7]
    assert talks.tiers.where("ann") == {"device": 3}
    assert first.shape[1] == 3
    talks.forget("ann")
    assert talks.history("ann") == []


def test_costs_are_those_of_the_weights_and_the_pairs(model: Any) -> None:
    cost = flops_of_chunks(model, size=32)
    p = sum(x.numel() for n, x in model.named_parameters() if "embed" not in n)
    pair = 2 * 4 * 4 * 8  # layers, 4 d for each head
    assert cost(0) == pytest.approx(2 * p * 32 + pair * 32 * 16)
    assert cost(1000) - cost(0) == pytest.approx(pair * 32 * 1000)


def test_files_and_wrong_uses(tmp_path: Any) -> None:
    tiers = Tiers(size=4)
    k, v = keys(6)
    tiers.put("a", k, v, now=0.0)
    other = load(Tiers(size=4), save(tiers, tmp_path / "tiers"))
    assert torch.equal(other.take("a")[1], k)
    wrong: list[Any] = [
        lambda: tiers.put("a", k, v, now=1.0), lambda: tiers.take("b"), lambda: Tiers(-1),
        lambda: Tiers(ahead=2.0), lambda: RecomputeCost([(0, 2.0), (1, 1.0)]),
        lambda: RecomputeCost([]),
        lambda: tiers.put("c", k, v[:, :, 1:], now=1.0),
        lambda: regard.Conversations(build("t5", PAIRS["t5"])),
    ]  # fmt: skip
    for use in wrong:
        with pytest.raises(RegardError):
            use()
