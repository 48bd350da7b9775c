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
    "falcon": {k: x for k, x in SMALL.items() if k != "intermediate_size"},
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
REFUSED: dict[str, dict[str, Any]] = {
    "deberta-v2": SMALL,
    "bloom": GPT2,
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
}

# Models of sound, of images in windows, and of images and text together: (class, settings).
SPEECH = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 8),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2,
}  # fmt: skip
TEXT = {k: x for k, x in GROUPED.items() if k != "max_position_embeddings"}
QWEN = {
    "text_config": {
        **TEXT,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2],
        },
    },
    "image_token_id": 63, "video_token_id": 62, "vision_start_token_id": 61,
    "vision_end_token_id": 60,
}  # fmt: skip
QWEN_EYE = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 1, "hidden_size": 32}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "whisper": ("WhisperForConditionalGeneration", {
        **PAIRS["bart"], "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
    }),
    "wav2vec2": ("Wav2Vec2Model", SPEECH),
    "hubert": ("HubertModel", SPEECH),
    "audio-spectrogram-transformer": ("ASTModel", {
        **VISION, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4,
    }),
    "swin": ("SwinModel", {
        "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4,
    }),
    "segformer": ("SegformerModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "clip": ("CLIPModel", {
        "text_config": {**SMALL, "projection_dim": 16}, "projection_dim": 16,
        "vision_config": {**VISION, "projection_dim": 16},
    }),
    "siglip": ("SiglipModel", {"text_config": SMALL, "vision_config": VISION}),
    "llava": ("LlavaForConditionalGeneration", {
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "text_config": {**TEXT, "model_type": "llama"}, "image_token_index": 63,
        "image_token_id": 63,
    }),
    "paligemma": ("PaliGemmaForConditionalGeneration", {
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "text_config": {**TEXT, "model_type": "gemma", "head_dim": 8}, "image_token_index": 63,
        "image_token_id": 63, "projection_dim": 32, "hidden_size": 32,
    }),
    "idefics3": ("Idefics3ForConditionalGeneration", {
        "vision_config": VISION, "text_config": {**TEXT, "model_type": "llama"},
        "image_token_id": 63, "scale_factor": 2,
    }),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", {
        **QWEN, "vision_config": {**QWEN_EYE, "embed_dim": 32, "mlp_ratio": 2},
    }),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", {
        **QWEN, "vision_config": {
            **QWEN_EYE, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 8,
            "fullatt_block_indexes": [1],
        },
    }),
}  # fmt: skip
# How many tokens stand for the image of a prompt.
IMAGE_TOKENS = {"llava": 16, "paligemma": 16, "idefics3": 4, "qwen2_vl": 4, "qwen2_5_vl": 4}


def other(name: str) -> tuple[Any, dict[str, Any]]:
    """Make a tiny random model of sound, images, or both with text, and inputs for it."""
    import transformers

    torch.manual_seed(0)
    kind, options = OTHERS[name]
    model = getattr(transformers, kind)
    config = model.config_class(**options)
    ids = torch.randint(5, 60, (2, 9))
    inputs: dict[str, Any]
    if name == "whisper":
        inputs = {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}
    elif name in ("wav2vec2", "hubert"):
        inputs = {"input_values": torch.randn(2, 400)}
    elif name == "audio-spectrogram-transformer":
        inputs = {"input_values": torch.randn(2, 32, 16)}
    elif name in ("qwen2_vl", "qwen2_5_vl"):
        ids = torch.cat((torch.full((2, 1), 61), torch.full((2, 4), 63), ids), 1)
        inputs = {"input_ids": ids, "pixel_values": torch.randn(32, 48),
                  "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
                  "mm_token_type_ids": (ids == 63).long()}  # fmt: skip
    else:
        inputs = {"pixel_values": torch.randn(2, 3, 64 if name == "segformer" else 16, 16)}
        if name == "segformer":
            inputs["pixel_values"] = torch.randn(2, 3, 64, 64)
        if name == "idefics3":
            inputs["pixel_values"] = inputs["pixel_values"][:, None]
        if name in IMAGE_TOKENS:
            ids = torch.cat((torch.full((2, IMAGE_TOKENS[name]), 63), ids), 1)
        if name not in ("swin", "segformer"):
            inputs["input_ids"] = ids
        if name == "paligemma":
            inputs["token_type_ids"] = torch.zeros_like(ids)
    return model(config).eval(), inputs


def build(name: str, options: dict[str, Any], causal: bool = False) -> Any:
    """Make a tiny random model of an architecture."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **options)
    if name in PAIRS:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM.from_config(config).eval()
    return (AutoModelForCausalLM if causal else AutoModel).from_config(config).eval()


def sharp_llama(layers: int) -> Any:
    """Make a tiny Llama of sharper attention than at random: no choice hangs on rounding."""
    made = build("llama", {**DECODERS["llama"], "num_hidden_layers": layers}, causal=True)
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.q_proj.weight *= 20
    return made
