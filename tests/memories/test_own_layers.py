"""Layers of our own decode through any memory of keys that a user chooses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core.errors import RegardError
from regard.memories import Full, Hosted, Kept, Mapped, Paged, Pool, Ring
from tests.memories.test_conformance import tensors_in

WINDOW = regard.Window(6) | regard.Sinks(2)
EXACT = ["full", "ring", "paged", "hosted", "mapped"]
IDS = torch.randint(0, 40, (2, 100), generator=torch.Generator().manual_seed(0))


def made(layer: str = "gqa", window: bool = False, **how: Any) -> Any:
    torch.manual_seed(0)
    how = {"kv_heads": 2, **how} if layer in ("gqa", "mha") else how
    if layer != "mla":  # it turns channels of its own
        how["position"] = "rotary"
    if window:
        how["support"] = WINDOW
    return regard.model([layer] * 2, dim=32, heads=4, vocab=40, **how).eval()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("window", [False, True])
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=8), pad=st.integers(0, 3))
@torch.no_grad()
def test_decoding_equals_the_whole(name: str, window: bool, pieces: list[int], pad: int) -> None:
    model, n = made(window=window), sum(pieces)
    padding = torch.ones(2, n, dtype=torch.bool)
    padding[0, : min(pad, pieces[0] - 1)] = False
    whole = model(IDS[:, :n], padding=padding)
    memory, outs = model.memory(name), []
    for piece, real in zip(IDS[:, :n].split(pieces, 1), padding.split(pieces, 1), strict=True):
        outs.append(model(piece, memory=memory, padding=real))
    found = torch.cat(outs, 1)
    assert memory.seen == n
    torch.testing.assert_close(found[padding], whole[padding], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "within"), [("int8", 0.02), ("int4", 0.4), ("int2", 2.0)])
@torch.no_grad()
def test_fewer_bits_stay_close_and_cost_less(name: str, within: float) -> None:
    model = made()
    whole = model(IDS)
    memory, full, outs = model.memory(name), model.memory(), []
    for piece in IDS.split(5, 1):
        outs.append(model(piece, memory=memory))
        model(piece, memory=full)
    wrong = (torch.cat(outs, 1) - whole).abs().max()
    assert 0 < wrong < within * whole.abs().max()
    assert memory.nbytes < 0.8 * full.nbytes
    reached: dict[int, int] = {}
    tensors_in(memory, reached)
    assert memory.nbytes == sum(reached.values())


@pytest.mark.parametrize("name", ["full", "int8", "paged", "hosted", "mapped"])
@torch.no_grad()
def test_latents_may_be_kept_so_too(name: str) -> None:
    model = made("mla", latent=8, rotary=4)
    whole, memory = model(IDS), model.memory(name)
    found = torch.cat([model(x, memory=memory) for x in IDS.split(7, 1)], 1)
    within = 0.05 if name == "int8" else 1e-4
    assert (found - whole).abs().max() < within * whole.abs().max()


def test_generating_says_the_same_and_a_ring_stops_growing() -> None:
    model = made(window=True)
    plain = model.generate(IDS[:, :9], 40)
    sizes = []
    for count in (20, 40):
        memory = model.memory("ring")
        assert torch.equal(model.generate(IDS[:, :9], count, memory=memory), plain[:, : 9 + count])
        sizes.append(memory.nbytes)
    assert sizes[0] == sizes[1]
    for keys in (Paged, Ring.of, lambda rule: Kept(Hosted), lambda rule: Kept(Mapped), "int8"):
        again = model.generate(IDS[:, :9], 40, memory=keys)
        assert torch.equal(again, plain) or keys == "int8"
    first = model.generate(IDS[:, :9], 5, memory=(memory := model.memory("paged")))
    assert torch.equal(model.generate(first[:, -1:], 5, memory=memory)[:, 1:], plain[:, 14:19])


def test_layers_share_a_pool_if_they_are_given_one() -> None:
    model, pool = made(), Pool(size=16)
    memory = model.memory(lambda rule: Paged(pool))
    with torch.no_grad():
        model(IDS[:, :40], memory=memory)
    assert pool.held == 2 * 2 * 3  # layers, rows, pages


def test_beams_copies_and_going_back() -> None:
    model = made()
    for name in ("paged", "int8", "mapped"):
        memory = model.memory(name)
        with torch.no_grad():
            model(IDS[:, :20], memory=memory)
            other = copy.deepcopy(memory)
            model(IDS[:, 20:30], memory=memory)
            memory.crop(20)
            memory.reorder(torch.tensor([1, 1]))
            a = model(IDS[:, 20:21], memory=memory)
            other.reorder(torch.tensor([1, 1]))
            b = model(IDS[:, 20:21], memory=other)
        torch.testing.assert_close(a, b, atol=0.05 if name == "int8" else 1e-5, rtol=0)
    loaded = pickle.loads(pickle.dumps(model.memory("full")))
    assert loaded.nbytes == 0


def test_layers_without_keys_are_as_they_were_and_wrong_uses_are_told() -> None:
    hybrid = regard.model(["mha", "retention"], dim=32, heads=4, vocab=40).eval()
    plain = hybrid.generate(IDS[:, :9], 5)
    assert torch.equal(hybrid.generate(IDS[:, :9], 5, memory="paged"), plain)
    layer = regard.layer("gqa", dim=32, heads=4, kv_heads=2, causal=True)
    assert layer.memory(Full).nbytes == 0
    wrong: list[Any] = [
        lambda: layer.memory("int5"), lambda: layer.memory(3),
        lambda: layer(torch.randn(1, 3, 32), memory=layer.memory(lambda rule: 3)),
        lambda: layer(torch.randn(1, 3, 32), memory=layer.memory(Ring.of)),
    ]  # fmt: skip
    for use in wrong:
        with pytest.raises(RegardError):
            use()
