"""Several rotary bases in one batch: one base is the model itself, each copy is a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from regard.core.errors import CapabilityError, ValueRangeError
from regard.serving.buckets import Buckets, choose_bases, decay, merged
from tests.architectures import DECODERS, PAIRS, build

IDS = torch.randint(5, 60, (2, 40), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[0, :9] = 0
BY = (1.0, 1.45, 2.1)
BASES = tuple(10_000.0 * by for by in BY)
NAMES = ["llama", "qwen3", "mistral", "phi", "glm", "cohere"]


def made(name: str, base: float | None = None) -> Any:
    """A model whose attention is sharp, so that positions matter; or the same at another base."""
    model = build(name, DECODERS[name], causal=True)
    if base is not None:
        changed = type(model.config).from_dict(model.config.to_dict())
        changed.rope_parameters = {**changed.rope_parameters, "rope_theta": base}
        model = type(model)(changed).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return model


@pytest.fixture(scope="module", params=NAMES)
def model(request: Any) -> Any:
    return made(request.param)


def base_of(model: Any) -> float:
    return float(model.config.rope_parameters["rope_theta"])


def decode(model: Any, ids: Any = IDS, real: Any = REAL, **how: Any) -> Any:
    inputs = {"attention_mask": real, "max_new_tokens": 10, "pad_token_id": 0, "do_sample": False}
    return model.generate(ids, eos_token_id=None, **{**inputs, **how})


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("how", [{}, {"prefill_chunk_size": 16}], ids=["whole", "pieces"])
def test_the_trained_base_is_the_model(n: int, how: dict[str, Any], model: Any) -> None:
    plain = decode(model, **how)
    with Buckets(model, [base_of(model)] * n):
        assert torch.equal(decode(model, **how), plain)
    assert torch.equal(decode(model, **how), plain)
    assert "forward" not in model.__dict__


@torch.no_grad()
def test_each_copy_is_a_model_at_its_base(model: Any) -> None:
    bases = [base_of(model) * by for by in BY]
    with Buckets(model, bases):
        out = decode(model, return_dict_in_generate=True, output_logits=True)
        teacher = model(out.sequences[:, :-1], attention_mask=None).logits
    tokens, layers = out.sequences, out.past_key_values.layers
    real = torch.cat((REAL, torch.ones(2, 9, dtype=torch.long)), 1)
    at = (real.cumsum(1) - 1).clamp(min=0)
    alone, whole = [], []
    for j, base in enumerate(bases):
        other = made(model.config.model_type, base)
        want = other(tokens[:, :-1], attention_mask=real, position_ids=at, use_cache=True)
        alone.append(want.logits)
        whole.append(other(tokens[:, :-1]).logits)
        for own, layer in zip(layers, want.past_key_values.layers, strict=True):
            window = own.keys.shape[2]
            for a, b in ((own.keys, layer.keys), (own.values, layer.values)):
                a = a[2 * j : 2 * j + 2][1]  # the row without padding
                torch.testing.assert_close(a, b[1, :, -window:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        merged(torch.stack(alone))[:, 39:], torch.stack(out.logits, 1), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(merged(torch.stack(whole)), teacher, atol=1e-4, rtol=1e-4)
    off = (whole[0] - whole[2]).abs().max() / whole[0].abs().max()
    assert off > 1e-3  # bases do matter here


def test_a_row_is_what_it_is_alone_and_samples_agree(model: Any) -> None:
    with Buckets(model, BASES):
        both, alone = decode(model), decode(model, IDS[:1, 9:], None)
        torch.manual_seed(3)
        one = decode(model, do_sample=True, temperature=0.7)
        torch.manual_seed(3)
        assert torch.equal(decode(model, do_sample=True, temperature=0.7), one)
    assert torch.equal(both[0, 9:], alone[0])


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 2**31))
def test_distributions_are_merged_by_confidence(n: int, vocabulary: int, seed: int) -> None:
    x = torch.randn(n, 3, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5
    p = x.double().softmax(-1)
    sure = p.max(-1).values
    want = ((sure / sure.sum(0))[..., None] * p).sum(0)
    torch.testing.assert_close(merged(x).double().exp(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("d", [32, 64, 128])
def test_chosen_bases_fill_troughs(d: int) -> None:
    bases = choose_bases(10_000.0, d)
    curves = torch.stack([decay(c, d) for c in bases])
    assert bases[0] == 10_000.0
    assert len(set(bases)) == 6
    lows = [float(curves[: j + 1].amax(0).min()) for j in range(6)]
    assert lows == sorted(lows)
    assert lows[-1] > lows[0]


def test_what_cannot_be_is_told() -> None:
    llama = made("llama")
    with Buckets(llama, BASES), pytest.raises(CapabilityError, match="beams reorder rows"):
        decode(llama, num_beams=2)
    with Buckets(llama, BASES), pytest.raises(CapabilityError, match="labels"):
        llama(IDS, labels=IDS)
    for name in ("gpt2", "gemma3_text"):
        with pytest.raises(CapabilityError, match="one rotation for all layers"):
            Buckets(build(name, DECODERS[name], causal=True))
    with pytest.raises(CapabilityError, match="no rotary"):
        Buckets(build("t5", PAIRS["t5"]))
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
              "original_max_position_embeddings": 32}  # fmt: skip
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    for rope in (scaled, dynamic):
        with pytest.raises(CapabilityError, match="are scaled"):
            Buckets(build("llama", {**DECODERS["llama"], "rope_parameters": rope}, causal=True))
    with pytest.raises(CapabilityError, match="two channels"):
        Buckets(build("gpt_neox", DECODERS["gpt_neox"], causal=True))
    wrong: list[Any] = [[], [0.5], ["x"]]
    for bases in wrong:
        with pytest.raises(ValueRangeError, match="bases"):
            Buckets(llama, bases)
    with pytest.raises(ValueRangeError, match="n`"):
        choose_bases(1e4, 64, n=0)
    with pytest.raises(ValueRangeError, match="reach"):
        choose_bases(1e4, 64, reach=1)
    assert "forward" not in llama.__dict__
