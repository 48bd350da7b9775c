"""Replace the attention of a trained model by another mechanism, weights carried over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.conversions.plain import attention_modules, key_padding, plain_layer
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, need, shape_of
from regard.layers.attention import Attention
from regard.layers.grouped_query import pooled_heads
from regard.layers.registry import get
from regard.layers.stack import need_sources
from regard.memories.layer import LayerMemory
from regard.models.checking import first_tensor, tiny_inputs


class Swapped(nn.Module):
    """A layer of Regard in place of an attention module of transformers, with the same interface.

    Its memory is a layer of the model's own cache, so that beams and batches are reordered with the
    rest.
    """

    def __init__(self, layer: Attention, config: Any, number: int) -> None:
        super().__init__()
        self.layer, self.config, self.layer_idx = layer, config, number
        self.source: list[Swapped] = []  # a list, so that the owner is no submodule
        self.between: dict[str, Any] = {}

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Mix tokens [b, n, dim]; return them and None in place of attention weights."""
        n, memory = hidden_states.shape[1], None
        if past_key_values is not None:
            memory = memory_in(past_key_values, self)
        real = key_padding(attention_mask, n, self.layer.causal)
        self.between = {"keys": self.source[0].between["keys"]} if self.source else {}
        y = self.layer(
            hidden_states, positions=position_ids, padding=real, memory=memory,
            between=self.between,
        )  # fmt: skip
        return y, None


def memory_in(cache: Any, swapped: Swapped) -> LayerMemory:
    """Return the memory that a layer keeps in a cache of transformers, made on first use."""
    from regard.conversions.cache import OwnCacheLayer

    number = swapped.layer_idx
    while len(cache.layers) <= number:
        cache.layers.append(OwnCacheLayer())
    held = cache.layers[number]
    if not isinstance(held, OwnCacheLayer):
        if held.get_seq_length():
            fail(
                RuleError, "past_key_values", "keys of another attention", "an empty cache",
                "start with a new cache after swapping",
            )  # fmt: skip
        held = cache.layers[number] = OwnCacheLayer()
    if held.memory is None:
        held.memory = swapped.layer.memory()
    return held.memory


def swap(
    model: nn.Module,
    name: str,
    *,
    layers: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    check: bool = True,
    **settings: Any,
) -> nn.Module:
    """Replace the attention of a transformers model by the mechanism `name`, in place.

    Weights are carried over: taken as they are where the mechanism has the same maps, key heads
    averaged where it has fewer, and, with `sources`, averaged over the layers that share them.
    `layers` chooses some. The model can then be trained further. `check` first verifies that
    Regard's plain attention in the same places changes nothing.

        regard.swap(model, "gqa", kv_heads=2)
        regard.swap(model, "moh_from_trained", active=6)
        regard.swap(model, "mlkv", kv_heads=2, sources=[0, 0, 2, 2])

    Returns the model.
    """
    need("transformers", "hf", "is what the model is made with")
    kind = get(name)
    if not issubclass(kind, Attention):
        fail(
            CapabilityError, "name", repr(name), "a mechanism with queries and keys",
            "name an attention mechanism; its weights give no recurrent state",
        )  # fmt: skip
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        fail(RuleError, "model", shape_of(model), "a transformers model", "pass the model itself")
    modules = attention_modules(model)
    chosen = range(len(modules)) if layers is None else list(layers)
    if any(not 0 <= i < len(modules) for i in chosen):
        fail(
            ValueRangeError, "layers", list(chosen), f"numbers from 0 to {len(modules) - 1}",
            "count the attention modules from 0",
        )  # fmt: skip
    if sources is not None:
        need_sources(sources, len(modules))
    dtype = next(model.parameters()).dtype
    config: Any = model.config
    config = config.get_text_config()
    plain = {i: plain_layer(modules[i][1], config, dtype) for i in chosen}
    if check:
        _prove(model, {modules[i][0]: Swapped(plain[i], config, i) for i in chosen})
    if sources is not None:
        _share(plain, sources)
    made = {}
    for i in chosen:
        own = {} if sources is None else {"owns_keys": sources[i] == i}
        layer = converted(plain[i], kind, **{**settings, **own})
        made[i] = Swapped(layer.train(model.training), config, i)
    for i in chosen:
        if sources is not None and sources[i] != i:
            made[i].source = [made[sources[i]]]
        model.set_submodule(modules[i][0], made[i])
    return model


def converted(plain: Attention, kind: type[Attention], **settings: Any) -> Attention:
    """Build a layer of a kind from a plain one: carry weights over, initialize the rest.

    >>> from regard.layers.grouped_query import MultiQuery
    >>> converted(Attention(16, heads=4), MultiQuery).to_k.weight.shape
    torch.Size([4, 16])
    """
    given = {
        "head_dim": plain.head_dim, "causal": plain.causal, "position": plain.position,
        "support": plain._support, "score": plain._score, "bias": plain.to_q.bias is not None,
        "kv_heads": plain.kv_heads, "dropout": plain.dropout,
    }  # fmt: skip
    try:
        made = kind(plain.dim, plain.heads, **{**given, **settings})
    except (TypeError, CapabilityError):  # kinds that decide their key heads take none
        if "kv_heads" in settings:
            raise
        del given["kv_heads"]
        made = kind(plain.dim, plain.heads, **{**given, **settings})
    made.to(plain.to_q.weight.dtype).to(plain.to_q.weight.device)
    for name in ("to_q", "to_k", "to_v"):
        new, old = getattr(made, name, None), getattr(plain, name)
        if new is None:
            continue
        old_heads = plain.heads if name == "to_q" else plain.kv_heads
        _carry(kind, name, new, old, old_heads, made.kv_heads)
    made.to_out = plain.to_out
    if plain._normed:
        made.norm_q, made.norm_k, made._normed = plain.norm_q, plain.norm_k, True
    return made


@torch.no_grad()
def _carry(
    kind: type[Attention], name: str, new: nn.Linear, old: nn.Linear, heads: int, kv_heads: int
) -> None:
    for part in ("weight", "bias"):
        wanted, have = getattr(new, part), getattr(old, part)
        if wanted is None or have is None:
            continue
        if have.shape != wanted.shape and name != "to_q" and heads % kv_heads == 0:
            have = pooled_heads(have, heads, kv_heads)
        if have.shape != wanted.shape:
            fail(
                CapabilityError, "name", f"{kind.__name__}, whose {name} is {list(wanted.shape)}",
                f"maps of {list(have.shape)}, or key heads that are averages of them",
                "choose another mechanism; multi-head weights do not convert to this one",
            )  # fmt: skip
        wanted.copy_(have)


@torch.no_grad()
def _share(plain: dict[int, Attention], sources: Sequence[int]) -> None:
    """Set the maps of the owner of keys to the mean of the maps of all layers that read them."""
    for owner in set(sources):
        group = [plain[i] for i, source in enumerate(sources) if source == owner and i in plain]
        for name in ("to_k", "to_v"):
            maps = [getattr(one, name) for one in group]
            for part in ("weight", "bias"):
                if maps and getattr(maps[0], part) is not None:
                    mean = torch.stack([getattr(m, part) for m in maps]).mean(0)
                    getattr(maps[0], part).copy_(mean)


@torch.no_grad()
def _prove(model: nn.Module, plain: dict[str, Swapped]) -> None:
    """Raise unless plain layers in place of the model's own give the same output."""
    inputs = tiny_inputs(model)
    if inputs is None:
        return
    training = model.training
    own = {path: model.get_submodule(path) for path in plain}
    model.eval()
    try:
        wanted = _outcome(model, inputs)
        for path, one in plain.items():
            model.set_submodule(path, one.eval())
        found = _outcome(model, inputs)
    finally:
        for path, module in own.items():
            model.set_submodule(path, module)
        model.train(training)
    gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
    # What bfloat16 and float32 lose in a few layers.
    if not gap < (1e-3 if wanted.dtype in (torch.float32, torch.float64) else 0.1):
        fail(
            CapabilityError, "model", f"{type(model).__name__}, changed by {gap:.2g}",
            "attention that Regard's plain layer does exactly",
            "its attention has a part that Regard does not read; it cannot be swapped",
        )  # fmt: skip


def _outcome(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    found = first_tensor(model(**inputs))
    assert found is not None
    return found
