"""Decoding over packed tokens is decoding over the numbers they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.call import Call
from regard.core.codes import Codes
from regard.core.errors import RegardError
from regard.core.key_forms import Packed
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.memories import Kept, Quantized
from regard.policies import policy
from regard.run import plan as plans
from regard.run.plan import EXECUTORS, densified, make_plan
from regard.run.reference import Reference
from regard.run.runner import run
from regard.run.triton.availability import why_not_here
from tests.architectures import DECODERS, build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    bool(why_not_here(DEVICE)), reason=f"kernels cannot run: {why_not_here(DEVICE)}"
)
# The numbers are sums in float32; halves round what is multiplied, as PyTorch does.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 3e-2}
BITS = st.sampled_from((8, 4, 2))


@pytest.fixture(autouse=True, scope="module")
def _memory_comes_full_of_nan():
    """What a kernel does not write would show."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(1, device=DEVICE).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def stores(k_bits: int, v_bits: int, group: int, residual: int) -> tuple[Quantized, Quantized]:
    return Quantized(k_bits, "channel", group, residual), Quantized(
        v_bits, "token", group, residual
    )


def held(store: Quantized) -> tuple[Codes, torch.Tensor]:
    """What is packed, and the exact tokens behind."""
    state = store.state()
    tail = state["tail"]
    return Codes(state["codes"], state["low"], state["step"], store.bits, tail.shape[3]), tail


def numbers(store: Quantized) -> torch.Tensor:
    """What the tokens stand for, in float32."""
    codes, tail = held(store)
    return torch.cat((codes.read(torch.float32), tail.float()), 2)


def close(got: Partial, want: Partial, dtype: torch.dtype) -> None:
    atol = TOLERANCE[dtype]
    for x, y in zip(got, want, strict=True):
        assert not x.isnan().any()
        torch.testing.assert_close(x.float(), y.float(), atol=atol, rtol=atol)


@settings(max_examples=60)
@given(
    bits=st.tuples(BITS, BITS), group=st.sampled_from((1, 2, 8, 16, 32, 128)),
    residual=st.integers(0, 20), b=st.integers(1, 2), g=st.integers(1, 2),
    share=st.sampled_from((1, 3, 4, 20)), n=st.integers(1, 300),
    d=st.sampled_from((8, 21, 48, 64)), e=st.sampled_from((4, 20, 64)),
    dtype=st.sampled_from(list(TOLERANCE)), splits=st.sampled_from((None, 1, 2, 5)),
    far=st.sampled_from((0.0, 30.0)), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_are_the_numbers_they_stand_for(
    bits: tuple[int, int], group: int, residual: int, b: int, g: int, share: int, n: int, d: int,
    e: int, dtype: torch.dtype, splits: int | None, far: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    n = max(n, group + residual)
    k, v = stores(*bits, group, residual)
    # Channels that stand far from zero are what keys have.
    keys = torch.randn(b, g, n, d) + far * (torch.arange(d) % 7 == 3)
    for store, x in ((k, keys), (v, torch.randn(b, g, n, e))):
        store.append(x.to(DEVICE, dtype))
        store.settle()
    q = torch.randn(b, g * share, 1, d, device=DEVICE).to(dtype) / (1 + far)
    call = Call.of(q.float(), numbers(k), numbers(v), Rule(score=Dot(0.3)))
    (own_k, tail_k), (own_v, tail_v) = held(k), held(v)
    own = Call(q, Packed(own_k, own_v, (tail_k, tail_v)), Rule(score=Dot(0.3))).checked()
    assert EXECUTORS["packed"].can(own)
    got = EXECUTORS["packed"].split(own, splits)
    assert got.out.dtype == dtype
    close(got, Reference().run(call), dtype)
    if dtype == torch.float32 or not far:  # else writing them out rounds the numbers themselves
        close(Partial(*run(own, ("lse",), "fused")[:2]), Reference().run(call), dtype)


def test_groups_of_no_power_of_two_are_gathered(seed: int) -> None:
    k, v = stores(4, 4, 12, 0)
    for store in (k, v):
        store.append(torch.randn(1, 2, 40, 8))
        store.settle()
    q = torch.randn(1, 4, 1, 8)
    (own_k, tail_k), (own_v, tail_v) = held(k), held(v)
    call = Call(q, Packed(own_k, own_v, (tail_k, tail_v)))
    got = run(call, ("lse",))
    close(Partial(*got[:2]), Reference().run(Call.of(q, numbers(k), numbers(v))), torch.float32)
    with pytest.raises(RegardError, match="groups of 12"):
        run(call, executor="packed")


def kernel_alone(patch: pytest.MonkeyPatch) -> None:
    """Let the kernel be chosen in the interpreter, too, and no number be written out."""
    patch.setattr("regard.run.packed.PackedDecode.avoid_reason", lambda self, call: "")
    patch.setattr(Codes, "read", None)
    patch.setattr(Packed, "dense", None)


@given(n=st.integers(1, 150), back=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_a_memory_is_attended_to_as_it_lies(n: int, back: int, seed: int) -> None:
    torch.manual_seed(seed)
    memory = Kept(lambda: Quantized(4, "channel", 8, 8), lambda: Quantized(8, "token", 8, 8))
    for m in (n, 1, 3):
        memory.extend(*torch.randn(2, 2, 2, m, 8))
        memory.settle()
    memory.crop(max(memory.seen - back, 1))
    memory.reorder(torch.tensor([1, 0, 1]))
    q = torch.randn(3, 6, 1, 8)
    call = Call(q, memory.keys(), Rule(score=Dot(0.5)))
    if call.keys.form == "dense":  # nothing is packed yet
        assert memory.seen < 16
        return
    want = Reference().run(densified(call))
    with pytest.MonkeyPatch.context() as patch:
        kernel_alone(patch)
        got = run(call.replace(keys=memory.keys()), ("lse",), "packed")
    close(Partial(*got[:2]), want, torch.float32)


def test_what_must_be_read_first_is_left(seed: int) -> None:
    q = torch.randn(1, 2, 1, 8)
    x = torch.randn(1, 2, 64, 8)

    def packs(by: str) -> Any:
        return lambda: Quantized(4, by, 8, 8)

    plain, turned = Kept(), Kept(packs("token"), packs("token"))
    padded, ragged = (Kept(packs("channel"), packs("token")) for _ in "pr")
    for memory in (plain, turned, ragged):
        memory.extend(x, x)
    keep = torch.ones(1, 64, dtype=torch.bool)
    keep[:, :3] = False
    padded.extend(x, x, keep)
    slots = torch.arange(64).expand(1, 2, -1).clone()
    slots[:, 1, 20:] = -1
    ragged.choose(slots)
    for memory in (plain, turned, padded, ragged):
        memory.settle()
        assert make_plan(Call(q, memory.keys())).executor != "packed"


def test_steps_of_a_model_read_codes() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = build("llama", {**DECODERS["llama"], "num_hidden_layers": 2}, causal=True)
    ids = torch.randint(5, 60, (2, 100))

    @torch.no_grad()
    def logits() -> torch.Tensor:
        found = []
        with regard.shrink(model, policy("quantized", bits=4), check=False):
            cache = model(ids[:, :90]).past_key_values
            with pytest.MonkeyPatch.context() as patch:
                if forced:
                    kernel_alone(patch)
                for t in range(90, 100):
                    found.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
        return torch.cat(found, 1)

    forced = False
    want = logits()
    forced = True
    plans._chosen.clear()
    torch.testing.assert_close(logits(), want, atol=2e-4, rtol=2e-4)
    plans._chosen.clear()


def learned(q: torch.Tensor) -> torch.Tensor:
    return q.requires_grad_()


def forced(q: torch.Tensor, k: Codes, v: Codes, t: torch.Tensor) -> None:
    run(Call(q, Packed(k, v, (t, t))), executor="packed")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k, v, t: forced(q[..., :7], k, v, t), "keys"),
        (lambda q, k, v, t: forced(q.expand(-1, -1, 2, -1), k, v, t), "executor"),
        (lambda q, k, v, t: forced(q, k._replace(bits=3), v, t), "k"),
        (lambda q, k, v, t: forced(q, k._replace(bits=8), v, t), "k"),
        (lambda q, k, v, t: forced(q, k, v._replace(codes=v.codes[:, :, :5]), t), "v"),
        (lambda q, k, v, t: forced(q, v, v, t), "executor"),
        (lambda q, k, v, t: forced(q, k, k, t), "executor"),
        (lambda q, k, v, t: Packed(k, v, (t, t[:, :1])), "tail"),
        (lambda q, k, v, t: forced(learned(q), k, v, t), "executor"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, words: str) -> None:
    k, v = stores(4, 4, 8, 8)
    for store in (k, v):
        store.append(torch.randn(1, 2, 64, 8))
        store.settle()
    q = torch.randn(1, 4, 1, 8)
    with pytest.raises(RegardError, match=f"`{words}`"):
        call(q, held(k)[0], held(v)[0], held(k)[1])
