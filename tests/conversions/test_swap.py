"""Trained models whose attention is swapped: what must stay, stays."""

import copy

import pytest
import torch

import regard
from regard.core.errors import RegardError

transformers = pytest.importorskip("transformers", reason="pip install 'regard[hf]'")

SMALL = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 99}


def llama(kind="Llama", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{**SMALL, "num_key_value_heads": 4, "intermediate_size": 96, **settings}
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def bert():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SMALL, intermediate_size=96)).eval()


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=32, patch_size=8
    )
    return transformers.ViTModel(config).eval()


IDS = torch.randint(0, 99, (2, 15), generator=torch.Generator().manual_seed(3))
# Mechanisms that at these settings do what multi-head attention does.
SAME = {
    "mha": {},
    "gqa": {"kv_heads": 4},
    "moh_from_trained": {"active": 8, "shared": 2},
    "talking_heads": {},
    "cross_layer_attention": {},
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_the_same_changes_nothing(name):
    model = llama()
    wanted = model(IDS).logits
    regard.swap(model, name, **SAME[name])
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: llama("Mistral", sliding_window=6), lambda: llama("Qwen2"),
             lambda: llama("Qwen3", head_dim=8), lambda: llama("Gemma", head_dim=8),
             lambda: llama("Gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=6)],
    ids=["mistral", "qwen2", "qwen3", "gemma", "gemma2"],
)  # fmt: skip
def test_architectures_are_read_right(make):
    model = make()
    wanted = model(IDS).logits
    assert torch.allclose(regard.swap(model, "mha")(IDS).logits, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["gqa", "moh", "mlkv"])
def test_generation_goes_on_in_the_cache(name):
    model = llama()
    settings = {"gqa": {"kv_heads": 2}, "moh": {}, "mlkv": {"sources": [0, 0, 2, 2]}}[name]
    regard.swap(model, name, **settings)
    slow = IDS
    for _ in range(6):
        slow = torch.cat((slow, model(slow, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    fast = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("mode", ["beams", "padding", "samples"])
def test_generation_modes_agree_with_the_unswapped(mode):
    model = llama()
    settings = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    given = {"input_ids": IDS}
    if mode == "beams":
        settings["num_beams"] = 3
    elif mode == "padding":
        real = torch.ones_like(IDS)
        real[0, :5] = 0
        given["attention_mask"] = real
    else:
        settings |= {"do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(5)
    wanted = model.generate(**given, **settings)
    regard.swap(model, "mha")
    torch.manual_seed(5)
    assert torch.equal(model.generate(**given, **settings), wanted)


@pytest.mark.parametrize("make", [bert, vit], ids=["bert", "vit"])
@pytest.mark.parametrize("name", ["mha", "gqa", "mae_attentive_experts"])
def test_encoders(make, name):
    model = make()
    given = {"input_ids": IDS} if make is bert else {"pixel_values": torch.randn(2, 3, 32, 32)}
    if make is bert:
        given["attention_mask"] = torch.ones_like(IDS)
        given["attention_mask"][0, 9:] = 0
    wanted = model(**given).last_hidden_state
    found = regard.swap(model, name)(**given).last_hidden_state
    if name == "mha":
        real = given.get("attention_mask", torch.ones(found.shape[:2])).bool()
        assert torch.allclose(found[real], wanted[real], atol=1e-5)
    assert found.isfinite().all()


def test_pooling_equal_heads_loses_nothing():
    model = llama(num_key_value_heads=8)
    with torch.no_grad():
        for block in model.model.layers:
            for part in (block.self_attn.k_proj, block.self_attn.v_proj):
                heads = part.weight.view(2, 4, 8, 64)
                heads.copy_(heads[:, :1].expand_as(heads))
    wanted = model(IDS).logits
    fewer = sum(p.numel() for p in model.parameters())
    regard.swap(model, "gqa", kv_heads=2)
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < fewer


def test_some_layers_alone():
    model = llama()
    before = copy.deepcopy(model)
    regard.swap(model, "softmax_plus_one", layers=[1, 3])
    kinds = [type(block.self_attn).__name__ for block in model.model.layers]
    assert kinds == ["LlamaAttention", "Swapped", "LlamaAttention", "Swapped"]
    assert not torch.allclose(model(IDS).logits, before(IDS).logits, atol=1e-3)


def test_swapped_models_train():
    model = regard.swap(llama(), "moh", active=4).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_it_cannot_read_is_left_alone():
    """A module that does more than its parts say is found out, and nothing is replaced."""
    model = llama()
    own = model.model.layers[1].self_attn
    own.register_forward_hook(lambda module, given, made: (2 * made[0], made[1]))
    with pytest.raises(RegardError, match="changed by"):
        regard.swap(model, "gqa")
    assert model.model.layers[1].self_attn is own


def rope(kind):
    return llama(rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0})


WRONG = {
    "no mechanism of that name": lambda: regard.swap(llama(), "gqqa"),
    "a running state": lambda: regard.swap(llama(), "retention"),
    "no rule for the weights": lambda: regard.swap(llama(), "differential"),
    "head embeddings": lambda: regard.swap(llama(), "mhe"),
    "not a model": lambda: regard.swap("llama", "gqa"),
    "not of transformers": lambda: regard.swap(torch.nn.Linear(2, 2), "gqa"),
    "layer out of range": lambda: regard.swap(llama(), "gqa", layers=[9]),
    "sources ahead": lambda: regard.swap(llama(), "mlkv", sources=[1, 1, 2, 3]),
    "sources too few": lambda: regard.swap(llama(), "mlkv", sources=[0, 0]),
    "key heads that divide nothing": lambda: regard.swap(llama(), "gqa", kv_heads=3),
    "more key heads than there are": lambda: regard.swap(llama(), "gqa", kv_heads=8),
    "attention with its own maps": lambda: regard.swap(
        transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_head=4, n_layer=1)), "gqa"
    ),
    "positions it cannot carry": lambda: regard.swap(rope("dynamic"), "gqa"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    with pytest.raises(RegardError):
        WRONG[name]()
