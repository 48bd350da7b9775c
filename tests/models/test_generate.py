"""Stages under generate: every way of decoding gives the tokens it gave without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from regard.models import Edit, Null, Stage, attach
from tests.architectures import DECODERS, build

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
}
IDS = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[0, :3] = 0


def decode(model: Any, **how: Any) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = {"attention_mask": REAL, "max_new_tokens": 12, "pad_token_id": 0}
    found: torch.Tensor = model.generate(IDS, **{**inputs, **how})
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_tokens_are_the_same(name: str, way: str) -> None:
    model = build(name, DECODERS[name], causal=True)
    plain = decode(model, **WAYS[way])
    with attach(model, [Null()]):
        assert torch.equal(decode(model, **WAYS[way]), plain)


@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_guessed_tokens_are_the_same(helper: str) -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    small = build("llama", {**DECODERS["llama"], "num_hidden_layers": 1}, causal=True)
    how = (
        {"prompt_lookup_num_tokens": 3} if helper == "prompt lookup" else {"assistant_model": small}
    )
    inputs = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False}
    plain = model.generate(IDS[1:], **inputs, **how)
    with attach(model, [Null()]):
        assert torch.equal(model.generate(IDS[1:], **inputs, **how), plain)


def test_packed_documents_do_not_meet() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        plain = model(IDS[:1], position_ids=places).logits
        with attach(model):
            torch.testing.assert_close(model(IDS[:1], position_ids=places).logits, plain)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2"])
def test_gradients_are_the_same(name: str) -> None:
    model = build(name, DECODERS[name], causal=True)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    with attach(model):
        for a, b in zip(gradients(), plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


class Note(Stage):
    """Writes down the order in which it is passed, and what it saw."""

    want = ("entropy",)

    def __init__(self, name: str, book: list[str]) -> None:
        super().__init__()
        self.label, self.book, self.surveys = name, book, 0

    def before(self, call: Any) -> Any:
        self.book.append(f"{self.label}>")
        return call

    def after(self, call: Any, partial: Any) -> Any:
        self.book.append(f"<{self.label}")
        return partial

    def see(self, call: Any, result: Any) -> None:
        self.surveys += 1


def test_stages_compose_in_order_under_generate() -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    book: list[str] = []
    a, b = Note("a", book), Note("b", book)
    with attach(model, [a, Edit("out", lambda x: x * 0.5), b], check=False):
        decode(model, max_new_tokens=3)
    assert book[:4] == ["a>", "b>", "<b", "<a"]
    assert a.surveys == b.surveys == 2 * 3


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_quantized_cache_is_the_models_own_business(name: str) -> None:
    pytest.importorskip("optimum.quanto", reason="pip install optimum-quanto")
    model = build(name, {**DECODERS[name], "hidden_size": 128}, causal=True)
    how = {
        "do_sample": False,
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": 4, "residual_length": 4, "q_group_size": 16},
    }
    plain = decode(model, **how)
    with attach(model, [Null()]):
        assert torch.equal(decode(model, **how), plain)


def test_turns_of_a_conversation_share_a_cache() -> None:
    """A second prompt after an answer, in pieces: as all of it at once."""
    from transformers import DynamicCache

    model = build("mistral", DECODERS["mistral"], causal=True)
    ids = torch.cat((IDS, IDS.flip(1)), 1)
    with attach(model, [Null()]), torch.no_grad():
        cache = DynamicCache(config=model.config)
        parts = [
            model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 7), (7, 8), (8, 18))
        ]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, atol=2e-5, rtol=2e-5)


def test_continuous_batching_is_refused_in_a_sentence() -> None:
    from regard.models.attention_interface import attention
    from regard.models.hook import UnsupportedModelError

    model = build("llama", DECODERS["llama"], causal=True)
    x = torch.randn(1, 4, 3, 8)
    with pytest.raises(UnsupportedModelError, match="continuous batching"):
        attention(model.model.layers[0].self_attn, x, x, x, None, cache=object())
    with attach(model, [Null()], check=False):
        with attach(model, [Null()], check=False):
            pass
        with pytest.raises(UnsupportedModelError, match="continuous batching"):
            model.generate_batch([[1, 2, 3]])
    assert "generate_batch" not in vars(model)


def test_a_model_in_another_thread_is_left_alone() -> None:
    import threading

    one, two = (build("llama", DECODERS["llama"], causal=True) for _ in range(2))
    plain, told, wrong = one(IDS).logits, threading.Event(), []

    def alone() -> None:
        for _ in range(20):
            if not torch.equal(two(IDS).logits, plain):
                wrong.append("changed")
        told.set()

    with attach(one, [Edit("out", lambda x: 0 * x)], check=False):
        thread = threading.Thread(target=alone)
        thread.start()
        while not told.is_set():
            assert not torch.allclose(one(IDS).logits, plain, atol=1e-3)
        thread.join()
    assert not wrong
    assert torch.equal(one(IDS).logits, plain)


def test_compiled_decoding_runs_stages_and_is_compiled_once() -> None:
    from torch._dynamo.utils import counters
    from transformers import CompileConfig

    torch._dynamo.reset()
    model = build("llama", DECODERS["llama"], causal=True)
    plain = decode(model, do_sample=False)
    config = CompileConfig(backend="eager", fullgraph=False, mode=None, dynamic=False)
    config._compile_all_devices = True
    how = {"do_sample": False, "cache_implementation": "static", "compile_config": config}
    with attach(model, [Edit("out", lambda out: 0.5 * out)]):
        edited = decode(model, do_sample=False)
        assert torch.equal(decode(model, **how), edited)
        graphs = counters["stats"]["unique_graphs"]
        assert torch.equal(decode(model, **how), edited)
        assert counters["stats"]["unique_graphs"] == graphs > 0
    assert not torch.equal(edited, plain)
    assert torch.equal(decode(model, **how), plain)
    torch._dynamo.reset()
