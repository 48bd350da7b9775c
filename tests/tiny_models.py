"""Tiny random models of any class of transformers, and inputs for them, by the names of settings.

Nothing here knows a class: sizes are found by name in the settings of its config, and inputs by
name among the arguments of its forward. What this cannot make is said by whoever asks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

WORDS = 99
# Settings by name, for a config of any class that has one of that name.
NAMES: tuple[tuple[int, str], ...] = (
    (32, """hidden_size d_model dim n_embd embed_dim embedding_size hidden_dim n_embed d_embed
     text_hidden_size encoder_hidden_size decoder_hidden_size word_embed_proj_dim entity_emb_size
     cross_attention_hidden_size vision_hidden_size patch_embed_dim pooler_hidden_size
     out_hidden_size output_hidden_size width rnn_dim embed_proj_dim audio_hidden_size encoder_dim
     decoder_dim inner_dim encoder_embed_dim decoder_embed_dim projection_dim projection_size
     proj_size mm_hidden_size image_size img_size input_image_size spec_size"""),
    (2, """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth
     num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
     num_blocks text_layers num_kv_layers layers encoder_n_layers decoder_n_layers
     num_key_value_heads num_kv_heads n_kv_heads num_experts_per_tok moe_topk moe_k
     top_k_experts num_conv_pos_embedding_groups"""),
    (4, """num_attention_heads n_head n_heads num_heads encoder_attention_heads nhead heads
     decoder_attention_heads encoder_num_attention_heads decoder_num_attention_heads
     attention_heads num_self_attention_heads num_cross_attention_heads attention_num_heads
     num_decoder_attention_heads num_encoder_attention_heads num_experts n_routed_experts
     num_local_experts moe_num_experts num_routed_experts sliding_window local_attention
     attention_window mamba_n_heads n_mamba_heads mamba_num_heads"""),
    (8, """head_dim attention_head_dim d_kv dim_head kv_channels q_lora_rank qk_rope_head_dim
     qk_nope_head_dim v_head_dim patch_size num_conv_pos_embeddings"""),
    (48, """intermediate_size d_ff ffn_dim d_inner mlp_dim encoder_ffn_dim decoder_ffn_dim
     dim_feedforward feed_forward_hidden_size dense_ffn_hidden_size ffn_hidden_size
     encoder_intermediate_size decoder_intermediate_size hidden_dim_ff
     shared_expert_intermediate_size mlp_hidden_size moe_dense_intermediate_size"""),
    (16, """moe_intermediate_size expert_ffn_hidden_size expert_dim kv_lora_rank num_mel_bins
     n_mels feature_size input_feat_per_channel mamba_d_head mamba_head_dim"""),
    (1, "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace"),
    (WORDS, "vocab_size text_vocab_size src_vocab_size tgt_vocab_size"),
    (128, """max_position_embeddings n_positions max_seq_len n_ctx seq_length max_source_positions
     max_target_positions max_2d_position_embeddings"""),
    (5, "num_queries num_query_tokens num_latents num_object_queries"),
    (3, "conv_kernel_size"),
)  # fmt: skip
SIZES = {name: size for size, names in NAMES for name in names.split()}
# What does not go with what differs from class to class: heads of their own size, heads of keys
# that are fewer, and settings that are lists in some classes.
_EQUAL = {n: x for n, x in SIZES.items() if n != "head_dim"} | {"num_key_value_heads": 4}
_LISTS = re.compile("moe_|layer|expert|depth")
SIZES_TRIED = (
    SIZES,
    {n: x for n, x in SIZES.items() if n != "head_dim"},
    _EQUAL,
    {n: x for n, x in _EQUAL.items() if not _LISTS.search(n)},
    {},
)
# Numbers of tokens that mean something, below the vocabulary; others of such a name count down.
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
# Lists of one number for each stage of a network: shorter stages, as wide as they are.
STAGES = {"depths", "num_hidden_layers", "encoder_depths", "decoder_depths", "layer_depths"}


def settings_of(kind: Any) -> dict[str, Any]:
    """Return the settings that a class of configs takes, with their defaults."""
    found = dict(getattr(kind, "__dataclass_fields__", {}))
    made = {name: getattr(kind, name, None) for name in found}
    for name, one in inspect.signature(kind.__init__).parameters.items():
        if one.kind is one.POSITIONAL_OR_KEYWORD and name != "self":
            made.setdefault(name, None if one.default is one.empty else one.default)
    return made


def tiny_config(kind: Any, tried: int = 0) -> Any:
    """Make a config of a class with small sizes; later tries change less of it."""
    number = WORDS
    chosen: dict[str, Any] = {}
    sizes = SIZES_TRIED[tried]
    parts = getattr(kind, "sub_configs", {})
    for name, default in settings_of(kind).items():
        if name in parts:
            continue
        if name in sizes and not isinstance(default, list | tuple | str):
            chosen[name] = sizes[name]
        elif name in STAGES and isinstance(default, list | tuple):
            chosen[name] = [1] * len(default)
        elif name in TOKENS and (isinstance(default, int) or name == "pad_token_id"):
            chosen[name] = TOKENS[name]
        elif name.endswith(("token_id", "token_index")) and isinstance(default, int):
            number -= 1
            chosen[name] = number
    if parts:
        plain = kind()
        for name, part in parts.items():
            there = getattr(plain, name, None)
            part = type(there) if there is not None else part
            if hasattr(part, "sub_configs") and part.__name__ != "AutoConfig":
                chosen[name] = tiny_config(part, tried)
    return kind(**chosen)


MOST = 80_000_000


def tiny_models(kind: Any) -> Iterator[nn.Module]:
    """Yield random models of a class, smallest first; raise what the first try raised if none is.

    A later one has more of the sizes that its config has by default, where some do not go together.
    """
    first: Exception | None = None
    built = False
    for tried in range(len(SIZES_TRIED)):
        try:
            config = tiny_config(kind.config_class, tried)
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(config).parameters())
            if size > MOST:
                raise ValueError(f"{size / 1e6:.0f} million parameters at the smallest tried")
            torch.manual_seed(0)
            made: nn.Module = kind(config).eval()
        except Exception as refused:  # configs refuse in many ways
            first = first or refused
        else:
            built = True
            yield made
    if not built and first is not None:
        raise first


def tiny_model(kind: Any) -> nn.Module:
    """Return the smallest random model of a class."""
    return next(tiny_models(kind))


def find(config: Any, *names: str) -> Any:
    """Return the first setting of these names in a config or its parts."""
    homes = [config, *(getattr(config, n, None) for n in getattr(config, "sub_configs", ()))]
    for name in names:
        for home in homes:
            x = getattr(home, name, None)
            if x is not None:
                return x
    return None


def inputs_of(model: Any) -> Iterator[dict[str, Any]]:
    """Yield inputs that a model may take, the most telling first: with a padded row."""
    takes = inspect.signature(type(model).forward).parameters
    config = getattr(model, "config", None)
    long = find(config, "max_length")
    sounds = [(2, 2000), (2, 16, 64), (2, 64, 16), (2, 16, 256), (2, 16, 160), (2, 1, 2000),
              (2, 128, 64)]  # fmt: skip
    sounds += [(2, long, 16)] if isinstance(long, int) and long < 3000 else []
    for sound in sounds:
        made = _inputs(takes, config, sound)
        if not made:
            return
        yield made
        books = find(config, "num_codebooks")
        if "input_ids" in made and isinstance(books, int):
            yield {**made, "input_ids": made["input_ids"][..., None].expand(-1, -1, books)}
        for left in (["attention_mask"], ["attention_mask", "decoder_input_ids"],
                     ["pixel_values"], ["input_ids", "attention_mask"],
                     ["input_features_mask"]):  # fmt: skip
            fewer = {name: x for name, x in made.items() if name not in left}
            if fewer and len(fewer) < len(made):
                yield fewer
        if not any(name in made for name in ("input_features", "input_values")):
            return
    silent = {n: x for n, x in made.items() if n not in ("input_features", "input_values")}
    silent.pop("input_features_mask", None)
    if silent:
        yield silent


def with_placeholders(model: Any, inputs: dict[str, Any], said: str) -> dict[str, Any] | None:
    """Return inputs whose text has a place for every feature that an error has counted."""
    counted = re.search(r"features:? (\d+)", said)
    names = [f"{x}_token_{y}" for x in ("audio", "image", "video") for y in ("id", "index")]
    config = getattr(model, "config", None)
    token = next((x for x in (find(config, n) for n in names) if isinstance(x, int)), None)
    if counted is None or token is None or "input_ids" not in inputs:
        return None
    ids = inputs["input_ids"]
    places = torch.full((len(ids), int(counted[1]) // len(ids)), token)
    ids = torch.cat((ids[:, :4], places, ids[:, 4:8]), 1)
    made = {**inputs, "input_ids": ids}
    if "attention_mask" in made:
        made["attention_mask"] = torch.ones_like(ids)
        made["attention_mask"][1:, -2:] = 0
    return made


def _inputs(takes: Any, config: Any, sound: tuple[int, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    draw = torch.Generator().manual_seed(1)
    size, channels = find(config, "image_size", "img_size"), find(config, "num_channels") or 3
    size = size[0] if isinstance(size, list | tuple) else size
    size = size if isinstance(size, int) else 32
    if "input_ids" in takes:
        ids = torch.randint(5, 60, (2, 12), generator=draw)
        made["input_ids"] = ids
        if "attention_mask" in takes:
            made["attention_mask"] = torch.ones_like(ids)
            made["attention_mask"][1, -3:] = 0
    if "decoder_input_ids" in takes:
        made["decoder_input_ids"] = torch.randint(5, 60, (2, 6), generator=draw)
    if "bbox" in takes:
        made["bbox"] = torch.tensor([1, 2, 5, 8]).expand(2, 12, 4).contiguous()
    if "pixel_values" in takes:
        made["pixel_values"] = torch.randn(2, int(channels), size, size, generator=draw)
    if "pixel_values_videos" in takes and "pixel_values" not in takes:
        frames = find(config, "num_frames", "frames_per_clip") or 4
        shape = (2, int(frames), int(channels), size, size)
        made["pixel_values_videos"] = torch.randn(shape, generator=draw)
    if "input_features" in takes:
        made["input_features"] = torch.randn(
            sound if len(sound) > 2 else (2, 16, 64), generator=draw
        )
        if "input_features_mask" in takes:
            shape = made["input_features"].shape
            made["input_features_mask"] = torch.ones(2, shape[-1], dtype=torch.long)
    if "input_values" in takes:
        made["input_values"] = torch.randn(sound, generator=draw)
    if "grid_thw" in takes:
        sides = [find(config, n) for n in ("in_channels", "temporal_patch_size", "patch_size")]
        many, deep, side = (
            x if isinstance(x, int) else y for x, y in zip(sides, (3, 1, 8), strict=True)
        )
        name = "pixel_values" if "pixel_values" in takes else "hidden_states"
        made[name] = torch.randn(16, many * deep * side * side, generator=draw)
        made["grid_thw"] = torch.tensor([[1, 4, 4]])
    if "query_embeds" in takes and not made:
        made["query_embeds"] = torch.randn(2, 12, 32, generator=draw)
    if "hidden_states" in takes and not made:
        made["hidden_states"] = torch.randn(2, 12, 32, generator=draw)
    if "inputs_embeds" in takes and not made:
        made["inputs_embeds"] = torch.randn(2, 12, 32, generator=draw)
    return made
