"""Layers with copied weights against torch's and transformers' own attention modules."""

import pytest
import torch
from torch import nn

import regard
from regard.core.rotary import Rotation, SlowedByWavelength, Yarn
from regard.core.score import Dot, SoftCap
from regard.layers import T5, Attention, Rotary

transformers = pytest.importorskip("transformers", reason="pip install 'regard[hf]'")


def close(a, b):
    assert torch.allclose(a, b, atol=1e-5), f"largest gap {(a - b).abs().max():.2g}"


def taken(layer, state):
    """Load weights that must fit one to one."""
    layer.load_state_dict(state)
    return layer.eval()


def llama_state(module):
    names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out",
             "q_norm": "norm_q", "k_norm": "norm_k"}  # fmt: skip
    return {
        f"{names[name.split('.')[0]]}.{name.split('.')[1]}": x
        for name, x in module.state_dict().items()
    }


@pytest.mark.parametrize(("causal", "cross"), [(True, False), (False, True), (False, False)])
def test_torch_multi_head_attention(causal, cross):
    torch.manual_seed(0)
    peer = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    nn.init.normal_(peer.in_proj_bias)
    layer = Attention(32, heads=4, causal=causal, bias=True)
    q, k, v = peer.in_proj_weight.chunk(3)
    bq, bk, bv = peer.in_proj_bias.chunk(3)
    state = {
        "to_q.weight": q, "to_k.weight": k, "to_v.weight": v, "to_out.weight": peer.out_proj.weight,
        "to_q.bias": bq, "to_k.bias": bk, "to_v.bias": bv, "to_out.bias": peer.out_proj.bias,
    }  # fmt: skip
    taken(layer, state)
    x, context = torch.randn(2, 9, 32), torch.randn(2, 13, 32)
    seen = context if cross else x
    real = torch.ones(2, seen.shape[1], dtype=torch.bool)
    real[1, 6:] = False
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1) if causal else None
    wanted, _ = peer(x, seen, seen, key_padding_mask=~real, attn_mask=mask)
    found = layer(x, context if cross else None, padding=real)
    # A padded token counts as zeros with us, so it is no query either: the real ones are compared.
    rows = torch.ones(2, 9, dtype=torch.bool) if cross else real
    close(found[rows], wanted[rows])


CAUSAL = {
    "llama": ("LlamaConfig", "llama.modeling_llama", "LlamaAttention", {}, {}),
    "llama 3 positions": (
        "LlamaConfig", "llama.modeling_llama", "LlamaAttention",
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        {"position": Rotary(SlowedByWavelength(factor=8.0, original=64))}),
    "yarn": (
        "LlamaConfig", "llama.modeling_llama", "LlamaAttention",
        {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
            "original_max_position_embeddings": 64}},
        {"position": Rotary(Yarn(factor=4.0, original=64))}),
    "interpolated": (
        "LlamaConfig", "llama.modeling_llama", "LlamaAttention",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
        {"position": Rotary(Rotation(factor=4.0))}),
    "qwen2": ("Qwen2Config", "qwen2.modeling_qwen2", "Qwen2Attention", {},
              {"bias": True, "out_bias": False}),
    "qwen3": ("Qwen3Config", "qwen3.modeling_qwen3", "Qwen3Attention", {"head_dim": 16},
              {"qk_norm": lambda d: nn.RMSNorm(d, eps=1e-6), "head_dim": 16}),
    "gemma": ("GemmaConfig", "gemma.modeling_gemma", "GemmaAttention", {"head_dim": 16},
              {"head_dim": 16}),
    "gemma2": ("Gemma2Config", "gemma2.modeling_gemma2", "Gemma2Attention",
               {"head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
                "sliding_window": 5},
               {"head_dim": 16, "score": Dot(24**-0.5) >> SoftCap(2.0),
                "support": regard.Window(5)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_modules_of_transformers(name):
    import importlib

    config_name, path, module_name, theirs, ours = CAUSAL[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=2, attention_dropout=0.0,
        max_position_embeddings=256, **theirs,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = importlib.import_module(f"transformers.models.{path}")
    peer = getattr(module, module_name)(config, layer_idx=0).eval()
    for p in peer.parameters():
        nn.init.normal_(p, std=0.2)
    layer = Attention(64, heads=8, kv_heads=2, causal=True, **{"position": Rotary(), **ours})
    taken(layer, llama_state(peer))
    x = torch.randn(2, 19, 64)
    rotary = next(getattr(module, n) for n in dir(module) if n.endswith("RotaryEmbedding"))(config)
    angles = rotary(x, torch.arange(19)[None])
    allowed = regard.Causal() & ours.get("support", regard.Everything())
    mask = torch.zeros(19, 19).masked_fill(~allowed.matrix(19)[0, 0], -torch.inf)
    wanted = peer(x, position_embeddings=angles, attention_mask=mask[None, None])[0]
    close(layer(x), wanted)


def test_bert():
    from transformers.models.bert.modeling_bert import BertAttention

    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=32, num_attention_heads=4)
    config._attn_implementation = "eager"
    peer = BertAttention(config).eval()
    own = peer.self
    state = {
        f"{mine}.{part}": getattr(theirs, part)
        for mine, theirs in (
            ("to_q", own.query), ("to_k", own.key), ("to_v", own.value),
            ("to_out", peer.output.dense),
        )
        for part in ("weight", "bias")
    }  # fmt: skip
    layer = taken(Attention(32, heads=4, bias=True), state)
    x = torch.randn(2, 11, 32)
    close(peer.output.LayerNorm(layer(x) + x), peer(x)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_t5(causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    config = transformers.T5Config(d_model=32, num_heads=4, d_kv=8, is_decoder=causal)
    peer = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    nn.init.normal_(peer.relative_attention_bias.weight)
    layer = Attention(
        32, heads=4, causal=causal, position=T5(4, bidirectional=not causal), score=Dot(1.0)
    )
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out"}
    state = {f"{mine}.weight": getattr(peer, name).weight for name, mine in names.items()}
    state["position.table"] = peer.relative_attention_bias.weight.T
    taken(layer, state)
    x = torch.randn(2, 200, 32)
    mask = torch.zeros(1, 1, 200, 200)
    if causal:
        mask = mask.masked_fill(torch.ones(200, 200, dtype=torch.bool).triu(1), -torch.inf)
    close(layer(x), peer(x, mask=mask)[0])


@pytest.mark.parametrize("query_latent", [None, 24])
def test_deepseek(query_latent):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=query_latent,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10,
        rope_interleave=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    peer = theirs.DeepseekV3Attention(config, layer_idx=0).eval()
    layer = regard.layer(
        "mla", 64, heads=4, latent=16, rotary=8, query_latent=query_latent, head_dim=12,
        value_dim=10, causal=True, rotation=Rotation(interleaved=True),
    )  # fmt: skip
    both = peer.kv_b_proj.weight.detach().view(4, 22, 16)
    state = {
        "to_latent.weight": peer.kv_a_proj_with_mqa.weight,
        "norm_latent.weight": peer.kv_a_layernorm.weight,
        "of_keys": both[:, :12], "of_values": both[:, 12:],
        "to_out.weight": peer.o_proj.weight,
    }  # fmt: skip
    if query_latent is None:
        state["to_q.weight"] = peer.q_proj.weight
    else:
        state |= {
            "to_query_latent.weight": peer.q_a_proj.weight,
            "norm_query.weight": peer.q_a_layernorm.weight,
            "to_q.weight": peer.q_b_proj.weight,
        }
    taken(layer, state)
    for norm in ("norm_latent", "norm_query"):
        if hasattr(layer, norm):
            getattr(layer, norm).eps = 1e-6
    x = torch.randn(2, 17, 64)
    angles = theirs.DeepseekV3RotaryEmbedding(config)(x, torch.arange(17)[None])
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17, dtype=torch.bool).triu(1), -torch.inf)
    wanted = peer(x, position_embeddings=angles, attention_mask=mask[None, None])[0]
    close(layer(x), wanted)
