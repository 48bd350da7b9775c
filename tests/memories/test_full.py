"""Memories of keys against a list that keeps everything."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.core.spans import Spans
from regard.memories import Full, LayerMemory

PIECES = st.lists(st.integers(1, 7), min_size=1, max_size=12)


def drawn(n, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed + n)
    return torch.randn(batch, 3, n, 4, generator=generator)


@given(PIECES, st.booleans())
def test_it_holds_what_a_list_holds(pieces, grad):
    memory, k, v = Full(), [], []
    for i, n in enumerate(pieces):
        k.append(drawn(n, seed=i).requires_grad_(grad))
        v.append(drawn(n, seed=i + 50))
        memory.extend(k[-1], v[-1])
    read = memory.read()
    assert torch.equal(read.k, torch.cat(k, 2))
    assert torch.equal(read.v, torch.cat(v, 2))
    assert memory.seen == sum(pieces)
    if grad:
        read.k.sum().backward()
        assert all(torch.equal(x.grad, torch.ones_like(x)) for x in k)


@given(PIECES, st.integers(1, 9), st.integers(0, 3))
def test_forgetting_changes_no_later_answer(pieces, window, sinks):
    rule = regard.Rule(regard.Causal() & (regard.Window(window) | regard.Sinks(sinks or 1)))
    memory, k = Full(), []
    for i, n in enumerate(pieces):
        x = drawn(n, seed=i)
        k.append(x)
        memory.extend(x, x)
        memory.forget(rule.horizon(memory.seen - n))
        read, seen = memory.read(), torch.cat(k, 2)
        now = rule.shift(memory.seen - n)
        kept = regard.attend(x, read.k, read.v, now, k_positions=read.positions)
        assert torch.allclose(kept, regard.attend(x, seen, seen, now), atol=1e-6)


def test_forgetting_bounds_what_is_held():
    memory = Full()
    rule = regard.Rule(regard.Causal() & regard.Window(8))
    for i in range(200):
        x = drawn(1, seed=i)
        memory.extend(x, x)
        memory.forget(rule.horizon(memory.seen))
        assert memory.read().k.shape[2] <= 12
    assert memory.nbytes < 20_000


def test_padding_is_an_empty_slot():
    memory, x = Full(), drawn(4)
    real = torch.tensor([[False, True, True, True], [True] * 4])
    memory.extend(x, x, real)
    assert memory.read().positions.tolist() == [[-1, 1, 2, 3], [0, 1, 2, 3]]
    memory.extend(x, x)
    assert memory.read().positions[0].tolist() == [-1, 1, 2, 3, 4, 5, 6, 7]


@given(PIECES, st.integers(0, 40))
def test_cropping_goes_back(pieces, length):
    memory, k = Full(), torch.cat([drawn(n, seed=i) for i, n in enumerate(pieces)], 2)
    memory.extend(k, k)
    length = min(length, memory.seen)
    memory.crop(length)
    assert memory.seen == length
    x = drawn(2, seed=99)
    memory.extend(x, x)
    assert torch.equal(memory.read().k, torch.cat((k[:, :, :length], x), 2))


def test_what_is_forgotten_cannot_be_cropped_to():
    memory, x = Full(), drawn(30)
    memory.extend(x, x)
    memory.forget(Spans.of((28, None)))
    with pytest.raises(CapabilityError):
        memory.crop(10)


def test_rows_are_taken_in_the_order_asked():
    memory, x = Full(), drawn(5)
    memory.extend(x, x, torch.tensor([[False] * 2 + [True] * 3, [True] * 5]))
    memory.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(memory.read().k, x[[1, 1, 0]])
    assert memory.read().positions[:, 0].tolist() == [0, 0, -1]


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_layer_goes_on_from_a_copy(carry):
    torch.manual_seed(0)
    layer = regard.layer("mha", 16, heads=2, causal=True)
    x = torch.randn(1, 9, 16)
    memory = layer.memory()
    with torch.no_grad():
        layer(x[:, :5], memory=memory)
        found = layer(x[:, 5:], memory=carry(memory))
    assert torch.allclose(found, layer(x)[:, 5:], atol=1e-6)


def test_a_layer_goes_back_with_its_memory():
    torch.manual_seed(0)
    layer = regard.layer("mha", 16, heads=2, causal=True)
    x, memory = torch.randn(1, 9, 16), layer.memory()
    with torch.no_grad():
        layer(x, memory=memory)
        memory.crop(4)
        assert torch.allclose(layer(x[:, 4:], memory=memory), layer(x)[:, 4:], atol=1e-6)


def state_memory():
    layer = regard.layer("retention", 16, heads=2)
    memory = layer.memory()
    layer(torch.randn(1, 4, 16), memory=memory)
    return memory


X = torch.randn(1, 2, 3, 4)
WRONG = {
    "k of three axes": lambda: Full().extend(X[0], X),
    "v of other tokens": lambda: Full().extend(X, X[:, :, :2]),
    "keep of other tokens": lambda: Full().extend(X, X, torch.ones(1, 2, dtype=torch.bool)),
    "keep of numbers": lambda: Full().extend(X, X, torch.ones(1, 3)),
    "nothing to read": lambda: Full().read(),
    "crop beyond": lambda: Full().crop(3),
    "crop of a state": lambda: state_memory().crop(2),
    "crop beyond what was seen": lambda: LayerMemory("x").crop(2),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    with pytest.raises(RegardError):
        WRONG[name]()
