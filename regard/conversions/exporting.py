"""Export a model of Regard to transformers, if the same architecture exists there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import CapabilityError, fail, need
from regard.core.rotary import Rotation
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Causal, Window
from regard.core.weigh import Softmax
from regard.layers.attention import Attention
from regard.layers.grouped_query import GroupedQuery, MultiQuery
from regard.layers.positions import Rotary
from regard.layers.stack import Block, FeedForward, LanguageModel
from regard.models.versions import supported

PLAIN = (Attention, GroupedQuery, MultiQuery)


def export(model: LanguageModel, *, longest: int = 2048) -> Any:
    """Build the transformers model that scores tokens as `model` does.

    Multi-head, grouped and multi-query attention with rotary positions become Llama; with
    normalized queries and keys Qwen 3; with a window Mistral. Save it with `save_pretrained`. Any
    part without a counterpart is an error. `longest` is `max_position_embeddings` of its config.

        ours = regard.model(["gqa"] * 4, dim=256, heads=8, vocab=1000, position="rotary")
        export(ours).save_pretrained("folder")
    """
    if not isinstance(model, LanguageModel):
        _cannot("model", type(model).__name__, "a LanguageModel, as regard.model makes them")
    need("transformers", "hf", "holds the architectures that are exported to")
    transformers = supported("transformers")
    blocks = [_block(i, block) for i, block in enumerate(model.stack.blocks)]
    if model.stack.sources != list(range(len(blocks))):
        _cannot("sources", model.stack.sources, "layers that read their own keys")
    if model.absolute is not None:
        _cannot("absolute", type(model.absolute).__name__, "rotary positions alone")
    kinds = {_facts(block.mixer) for block in blocks}
    if len(kinds) > 1:
        _cannot("layers", f"{len(kinds)} kinds of attention", "the same attention in every layer")
    (facts,) = kinds
    heads, kv_heads, head_dim, base, normed, window = facts
    if normed and window is not None:
        _cannot("window", window, "no window beside normalized queries and keys")
    name = "Qwen3" if normed else "Llama" if window is None else "Mistral"
    more = {} if window is None else {"sliding_window": window}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=model.embedding.num_embeddings,
        hidden_size=model.stack.dim,
        intermediate_size=blocks[0].feed_forward.to_gate.out_features,  # type: ignore[union-attr]
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        rms_norm_eps=_eps(model.norm, model.embedding.weight.dtype),
        tie_word_embeddings=model.head.weight is model.embedding.weight,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )
    made = getattr(transformers, f"{name}ForCausalLM")(config).to(model.embedding.weight.dtype)
    weights = _weights(model, blocks, normed)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    found = made.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    return made.train(model.training)


def _block(number: int, block: nn.Module) -> Block:
    """Return the block; raise unless it is built like Llama's."""
    assert isinstance(block, Block)
    where = f"layer {number}"
    if block.cross is not None or not block.norm_first:
        _cannot(where, "cross-attention, or norms after", "norms first and no cross-attention")
    if type(block.feed_forward) is not FeedForward:
        _cannot(where, type(block.feed_forward).__name__, "the gated feed-forward (SwiGLU)")
    if not all(isinstance(norm, nn.RMSNorm) for norm in block.norms):
        _cannot(where, "other norms", "RMSNorm")
    if type(block.mixer) not in PLAIN:
        _cannot(where, type(block.mixer).__name__, "mha, gqa or mqa")
    return block


def _facts(layer: Any) -> tuple[int, int, int, float, bool, int | None]:
    """Return the config values of an attention layer; raise if it has a part without one."""
    turns = layer.position
    plain = type(turns) is Rotary and type(turns.rotation) is Rotation and turns.channels is None
    if not plain or turns.rotation.interleaved or turns.rotation.factor != 1:
        _cannot("position", f"{turns}", 'position="rotary" in halves, on all channels')
    if layer.value_dim != layer.head_dim or any(
        x.bias is not None for x in (layer.to_q, layer.to_k, layer.to_v, layer.to_out)
    ):
        _cannot("layers", "biases, or values of another size", "neither")
    if layer._normed and not all(isinstance(x, nn.RMSNorm) for x in (layer.norm_q, layer.norm_k)):
        _cannot("qk_norm", type(layer.norm_q).__name__, "RMSNorm")
    rule: Rule = layer.rule()
    window = None if rule.support == Causal() else _window(rule)
    usual = (Dot(), Dot(layer.head_dim**-0.5))
    if rule.score not in usual or rule.weigh != Softmax():
        _cannot("rule", f"{rule}", "the scaled dot product and softmax")
    return (layer.heads, layer.kv_heads, layer.head_dim, float(turns.rotation.base),
            bool(layer._normed), window)  # fmt: skip


def _window(rule: Rule) -> int:
    """Return the width of a causal window."""
    parts = getattr(rule.support, "parts", ())
    windows = [x for x in parts if isinstance(x, Window) and x.right is None]
    if len(windows) != 1 or rule.support != Causal() & windows[0]:
        _cannot("support", f"{rule.support}", "Causal(), or Causal() & Window(w)")
    return windows[0].left


def _eps(norm: nn.Module, dtype: torch.dtype) -> float:
    """Return the epsilon of a norm."""
    if not isinstance(norm, nn.RMSNorm):
        _cannot("norm", type(norm).__name__, "RMSNorm")
    assert isinstance(norm, nn.RMSNorm)
    return torch.finfo(dtype).eps if norm.eps is None else norm.eps


def _weights(model: LanguageModel, blocks: list[Any], normed: bool) -> dict[str, Tensor]:
    """Return the weights under the names of transformers."""
    found: dict[str, Any] = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out"}
    maps = {"gate": "to_gate", "up": "to_width", "down": "to_out"}
    for i, block in enumerate(blocks):
        home = f"model.layers.{i}"
        for theirs, ours in names.items():
            found[f"{home}.self_attn.{theirs}_proj.weight"] = getattr(block.mixer, ours).weight
        if normed:
            for part in "qk":
                norm = getattr(block.mixer, f"norm_{part}")
                found[f"{home}.self_attn.{part}_norm.weight"] = norm.weight
        for theirs, ours in maps.items():
            found[f"{home}.mlp.{theirs}_proj.weight"] = getattr(block.feed_forward, ours).weight
        found[f"{home}.input_layernorm.weight"] = block.norms[0].weight
        found[f"{home}.post_attention_layernorm.weight"] = block.norms[1].weight
    return {name: x.detach().clone() for name, x in found.items()}


def _cannot(what: str, got: object, expected: str) -> None:
    fail(
        CapabilityError, what, got, expected,
        "transformers has no such model: save the state_dict instead",
    )  # fmt: skip
