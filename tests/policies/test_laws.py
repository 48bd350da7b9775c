"""What every policy must do: nothing at full budget, no harm to batches, and leave no trace."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.models import Null
from regard.models.attach import attach
from regard.policies import Policy, known, policy
from regard.policies.kinds import Calibrated
from regard.policies.shrinking import Shrinking
from tests.architectures import DECODERS, ENCODERS, PAIRS, build, sharp_llama

IDS = torch.randint(5, 60, (2, 70), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
PAD = 13
REAL[0, :PAD] = 0
# Settings at which policies that lose something at any budget lose nothing.
LOSSLESS: dict[str, dict[str, Any]] = {
    "quantized": {"residual": 1 << 20},
    "low_rank": {"rank": 1.0},
}
NAMES = sorted(
    {
        kind.name
        for kind in known().values()
        # Those for models that make images have laws of their own; `el_attention`, which no rotary
        # model can take, has these with another model (test_expanded_queries).
        if kind.__module__.startswith("regard.policies")
        and kind.what != "images"
        and kind.name != "el_attention"
    }
)
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(4)


def prepared(name: str, model: Any, **settings: Any) -> Policy:
    """A policy, with what calibration would give it."""
    if name == "moa_sparse":
        settings = {"block": 8, "sinks": 2, **settings}
    if name == "pod":
        settings = {"window": 8, "sinks": 2, **settings}
    if name in ("duo_attention", "lserve"):
        settings = {"recent": 8, "sinks": 2, **settings}
    if name == "s2":
        settings = {"block": 4, **settings}
    made = policy(name, **{**LOSSLESS.get(name, {}), **settings})
    if isinstance(made, Calibrated) and made.needed:
        made.take(made.guess(model))  # type: ignore[attr-defined]
    return made


def decode(model: Any, ids: Any = IDS, real: Any = REAL, **how: Any) -> torch.Tensor:
    inputs = {"attention_mask": real, "max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
    found: torch.Tensor = model.generate(ids, eos_token_id=None, **{**inputs, **how})
    return found


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "pieces": {"prefill_chunk_size": 16},
}


@pytest.mark.parametrize("way", WAYS)
@every
def test_at_full_budget_tokens_are_the_same(name: str, way: str, model: Any) -> None:
    plain = decode(model, **WAYS[way])
    with regard.shrink(model, prepared(name, model), keep=1.0, check=False):
        assert torch.equal(decode(model, **WAYS[way]), plain)


@pytest.mark.parametrize("helper", ["lookup", "assistant"])
@every
def test_guessed_tokens_are_the_same_or_it_is_said(name: str, helper: str, model: Any) -> None:
    small = build("llama", {**DECODERS["llama"], "num_hidden_layers": 1}, causal=True)
    how = {"prompt_lookup_num_tokens": 3} if helper == "lookup" else {"assistant_model": small}
    one = {"ids": IDS[1:], "real": REAL[1:]}
    plain = decode(model, **one, **how)
    with regard.shrink(model, prepared(name, model), keep=1.0, check=False):
        assert torch.equal(decode(model, **one, **how), plain)
    with regard.shrink(model, prepared(name, model), keep=0.3, check=False):
        greedy, refused, guessed = decode(model, **one), "", None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                guessed = decode(model, **one, **how)
            except CapabilityError as error:
                refused = str(error)
        told = any("verified at once" in str(w.message) for w in said)
        # What was evicted can't be asked again; who does not evict goes on.
        assert "dropped" in refused if guessed is None else told or torch.equal(guessed, greedy)


@every
def test_turns_go_on_from_what_is_kept(name: str, model: Any) -> None:
    """At full budget two turns are one text; at less, the second turn runs and counts right."""
    with torch.no_grad():
        plain = model(IDS).logits[:, 40:]
    with regard.shrink(model, prepared(name, model), keep=1.0, check=False), torch.no_grad():
        cache = model(IDS[:, :40]).past_key_values
        again = model(IDS[:, 40:], past_key_values=cache).logits
        torch.testing.assert_close(again, plain, atol=1e-4, rtol=1e-4)
        assert cache.get_seq_length() == 70
    with regard.shrink(model, prepared(name, model), keep=0.3, check=False), torch.no_grad():
        cache = model(IDS[:, :40]).past_key_values
        again = model(IDS[:, 40:], past_key_values=cache).logits
        assert again.isfinite().all()
        assert cache.get_seq_length() == 70


@every
def test_a_stage_beside_it_changes_nothing(name: str, model: Any) -> None:
    """Alone a policy may attend by groups of heads; beside others it shows them every key."""
    with regard.shrink(model, prepared(name, model), keep=0.4, check=False):
        alone = decode(model)
    stage = Shrinking([prepared(name, model)], 0.4)
    with attach(model, [stage, Null()], check=False):
        assert torch.equal(decode(model), alone)


@every
def test_detaching_leaves_no_trace(name: str, model: Any) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain, hooks = decode(model), len(model._forward_pre_hooks)
    shrunk = regard.shrink(model, prepared(name, model), keep=0.3, check=False)
    decode(model)
    shrunk.detach()
    shrunk.detach()
    assert torch.equal(decode(model), plain)
    assert len(model._forward_pre_hooks) == hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.config._attn_implementation != "regard"


@every
def test_bytes_told_are_bytes_held(name: str, model: Any) -> None:
    from tests.memories.test_conformance import tensors_in

    with (
        regard.shrink(model, prepared(name, model), keep=0.3, check=False) as shrunk,
        torch.no_grad(),
    ):
        model(IDS)
        report = shrunk.report()
        found: dict[int, int] = {}
        for layer in shrunk.stage.layers:
            memory = layer.memory
            tensors_in(memory, found)
            tensors_in(layer.extra, found)
        files = sum(x.file_bytes for x in report.layers)
        held = {p: n for p, n in found.items() if p}
        assert sum(held.values()) in (report.bytes, report.bytes + files)
        if policy(name).what == "evicts":
            per_key = report.full_bytes / (4 * 70)
            kept = sum(sum(x.kept) / len(x.kept) for x in report.layers)
            assert report.bytes <= 1.3 * kept * per_key + 4 * 4 * 70 * 2 * 2 * 2
            assert kept < 0.75 * 4 * 70
        assert str(report)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt2", "opt", "qwen3", "gpt_neox", "phi"])
@pytest.mark.parametrize("how", ["snapkv", "streaming", "quantized", "ada_kv"])
def test_models_of_many_kinds(name: str, how: str) -> None:
    torch.manual_seed(0)
    made = build(name, DECODERS[name], causal=True)
    ids, real = IDS[:, :40], REAL[:, :40]
    plain = decode(made, ids, real)
    with regard.shrink(made, policy(how, **LOSSLESS.get(how, {})), keep=1.0, check=False):
        assert torch.equal(decode(made, ids, real), plain)
    with regard.shrink(made, how, keep=0.3, check=False) as shrunk:
        decode(made, ids, real)
        assert shrunk.report().bytes > 0
    assert torch.equal(decode(made, ids, real), plain)


def test_policies_stack(model: Any) -> None:
    stack = [policy("snapkv", keep=0.5), policy("quantized", bits=8, group=8, residual=8),
             policy("block_sparse", keep=0.5, block=16)]  # fmt: skip
    with regard.shrink(model, stack) as shrunk:
        decode(model)
        assert shrunk.report().bytes < 0.35 * shrunk.report().full_bytes


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda m: regard.shrink(m, "snapvk"), "near: snapkv"),
        (lambda m: regard.shrink(m, []), "a name"),
        (lambda m: regard.shrink(m, [3]), "a name or a Policy"),
        (lambda m: regard.shrink(m, "snapkv", keep=0.0), "share"),
        (lambda m: regard.shrink(m, "snapkv", keep=-3), "share"),
        (lambda m: regard.shrink(m, "snapkv", keep="2 apples"), "bytes"),
        (lambda m: regard.shrink(m, ["snapkv", "h2o"]), "each with its own"),
        (lambda m: policy("snapkv", windw=3), "did you mean 'window'"),
        (lambda m: regard.shrink(m, "snapkv", calibrate="nowhere"), "No such file"),
        (lambda m: regard.shrink(m, "duo_attention"), "regard.policies.calibrate"),
        (lambda m: regard.shrink(m, "kv_sharer"), "regard.policies.calibrate"),
    ],
)
def test_wrong_uses_are_told(what: Any, said: str, model: Any) -> None:
    with pytest.raises(RegardError, match=said):
        what(model)
    decode(model, max_new_tokens=1)


@pytest.mark.parametrize(
    ("model_of", "said"),
    [
        (lambda: build("bert", ENCODERS["bert"]), "BertModel"),
        (lambda: build("t5", PAIRS["t5"]), "encoder"),
        (lambda: regard.model(["gqa"], dim=32, heads=4, kv_heads=2, vocab=10), "cache"),
    ],
)
def test_models_that_a_policy_cannot_take_are_told(model_of: Any, said: str) -> None:
    with pytest.raises(RegardError, match=said):
        regard.shrink(model_of(), "snapkv", check=False)


def test_caches_that_cannot_be_taken_over_are_told(model: Any) -> None:
    from transformers import DynamicCache

    with torch.no_grad():
        filled = model(IDS).past_key_values
    with regard.shrink(model, "snapkv", check=False) as shrunk:
        with pytest.raises(CapabilityError, match="70 tokens seen"):
            model(IDS, past_key_values=filled)
        with pytest.raises(CapabilityError, match="StaticCache"):
            decode(model, cache_implementation="static")
        with pytest.raises(CapabilityError, match="use_cache"):
            model(IDS, use_cache=False)
        with pytest.raises(CapabilityError, match="attention_mask"):
            model(IDS, attention_mask=torch.ones(2, 1, 70, 70, dtype=torch.bool))
        ours = DynamicCache(config=model.config)
        model(IDS, past_key_values=ours)
        assert shrunk.report().bytes < shrunk.report().full_bytes
    with pytest.raises(CapabilityError, match="no longer shrunk"):
        model(IDS[:, :1], past_key_values=ours)


def test_a_cache_type_of_transformers_is_one_line_under_models(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Cache, DynamicCache

    from regard.models.cache import CACHE_TYPES, KeyLayer

    class OwnCache(Cache):
        """A type that the library has never seen."""

    with regard.shrink(model, "snapkv", check=False), torch.no_grad():
        with pytest.raises(CapabilityError, match="OwnCache"):
            model(IDS, past_key_values=OwnCache(layers=[]))
        monkeypatch.setitem(CACHE_TYPES, OwnCache, lambda cache, own: setattr(cache, "layers", own))
        ours = OwnCache(layers=[])
        found = model(IDS, past_key_values=ours).logits
        want = model(IDS, past_key_values=DynamicCache(config=model.config)).logits
    assert all(isinstance(x, KeyLayer) for x in ours.layers)
    assert torch.equal(found, want)


def test_a_stage_that_changes_keys_is_told(model: Any) -> None:
    from regard.models import Edit

    stage = Shrinking([policy("snapkv")], 0.5)
    with (
        attach(model, [Edit("k", lambda k: 2 * k), stage], check=False),
        pytest.raises(CapabilityError, match="another stage has changed"),
    ):
        decode(model)
