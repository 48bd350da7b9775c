"""Tiny configs of many transformers architectures."""

from __future__ import annotations

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
SIZED = {**GROUPED, "head_dim": 8}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

DECODERS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": SIZED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "gemma": SIZED,
    "gemma2": {**SIZED, "sliding_window": 4},
    "gemma3_text": {**SIZED, "sliding_window": 4},
    "phi": SMALL,
    "phi3": GROUPED,
    "gpt2": GPT2,
    "gpt_neox": SMALL,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_oss": {**SIZED, **EXPERTS, "sliding_window": 4},
    "mixtral": {**GROUPED, **EXPERTS},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**SIZED, **EXPERTS},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "stablelm": GROUPED,
    "cohere": GROUPED,
    "cohere2": {**GROUPED, "sliding_window": 4},
    "granite": GROUPED,
    "starcoder2": {**GROUPED, "sliding_window": 4},
    "glm": SIZED,
    "helium": SIZED,
    "smollm3": GROUPED,
    "nemotron": GROUPED,
    "olmoe": {**GROUPED, **EXPERTS},
    "gpt_bigcode": GPT2,
    "biogpt": SMALL,
    "exaone4": {**GROUPED, "sliding_window": 4},
    "deepseek_v3": {
        **SMALL,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 32},
    "modernbert": {**SMALL, "local_attention": 4},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "albert": {**SMALL, "embedding_size": 32},
    "xlm-roberta": SMALL,
    "camembert": SMALL,
    "ernie": SMALL,
}
IMAGES: dict[str, dict[str, Any]] = {
    "vit": VISION,
    "dinov2": VISION,
    "deit": VISION,
    "clip_vision_model": VISION,
    "siglip_vision_model": VISION,
    "dinov3_vit": VISION,
    "ijepa": VISION,
}
PAIRS: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "bart": {
        "vocab_size": 64,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
    },
}
PAIRS["mbart"] = PAIRS["pegasus"] = PAIRS["bart"]
PAIRS["marian"] = {**PAIRS["bart"], "pad_token_id": 0, "decoder_start_token_id": 0}
REFUSED: dict[str, dict[str, Any]] = {"deberta-v2": SMALL, "bloom": GPT2}


def build(name: str, options: dict[str, Any], causal: bool = False) -> Any:
    """Make a tiny random model of an architecture."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **options)
    if name in PAIRS:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM.from_config(config).eval()
    return (AutoModelForCausalLM if causal else AutoModel).from_config(config).eval()
