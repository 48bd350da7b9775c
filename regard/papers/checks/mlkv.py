"""Layers own key heads for others: the ends are known models; equal weights convert."""

from __future__ import annotations

import torch

from regard.layers.attention import Attention
from regard.layers.building import model
from regard.layers.grouped_query import pooled_heads
from regard.layers.registry import layer as layer_named
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.languages import equal_key_heads, language_loss
from regard.papers.shared.measure import gap


@check("mlkv", narrowed={"perplexity rises": "trained from the start in 150 steps, not uptrained"})
def key_heads_across_layers() -> Claims:
    """Layers own key heads for others: the ends are known models; equal weights convert."""
    tokens, x = torch.randint(0, 50, (2, 15)), torch.randn(2, 15, 64)
    sizes = {"dim": 64, "heads": 8, "vocab": 50}

    def made(m: int, g: int) -> torch.nn.Module:
        restart()
        size = 4 // m
        return model(["mlkv"] * 4, kv_heads=g, sources=[i - i % size for i in range(4)], **sizes)

    restart()
    mha = model(["mha"] * 4, **sizes)
    restart()
    mqa = model(["mqa"] * 4, **sizes)
    restart()
    pairs = model(["cross_layer_attention"] * 4, kv_heads=1, sources=[0, 0, 2, 2], **sizes)
    ends = [
        gap(made(m, g)(tokens), other(tokens))
        for m, g, other in ((4, 8, mha), (4, 1, mqa), (2, 1, pairs))
    ]

    kept = {}
    for m, g in ((4, 8), (2, 8), (2, 1), (1, 1)):
        one = made(m, g)
        memory = one.memory()
        with torch.no_grad():
            one(tokens, memory=memory)
        heads = [memory.get(f"{i}").get("mixer").get("keys") for i in range(4)]
        kept[f"{m} x {g}"] = sum(k.read().k.shape[1] for k in heads if k is not None)

    # Layers of a group whose keys and values are the same in every head convert without loss.
    first, second = Attention(64, heads=8, causal=True), Attention(64, heads=8, causal=True)
    equal_key_heads(first)
    second.to_k, second.to_v = first.to_k, first.to_v
    owner = layer_named("mlkv", 64, heads=8, kv_heads=2, causal=True)
    reader = layer_named("mlkv", 64, heads=8, kv_heads=2, causal=True, owns_keys=False)
    for layer, plain in ((owner, first), (reader, second)):
        state = plain.state_dict()
        state |= {n: pooled_heads(state[n], 8, 2) for n in ("to_k.weight", "to_v.weight")}
        layer.load_state_dict({n: state[n] for n in layer.state_dict()})
    between: dict[str, object] = {}
    lossless = max(
        gap(owner(x, between=between), first(x)), gap(reader(x, between=between), second(x))
    )
    sources = {4: None, 2: [0, 0, 2, 2], 1: [0, 0, 0, 0]}
    losses = {m: language_loss(kv_heads=1, sources=s) for m, s in sources.items()}
    yield claim("m=L,g=H equals MHA", "difference of logits", ends[0]).within(
        1e-6, "MHA started alike", because=FLOAT32
    )
    yield claim("m=L,g=1 equals MQA", "difference of logits", ends[1]).within(
        1e-6, "MQA started alike", because=FLOAT32
    )
    yield claim("m=L/2,g=1 equals", "difference of logits", ends[2]).within(
        1e-6, "cross_layer_attention in pairs, one key head", because=FLOAT32
    )
    yield claim("converting a model", "difference after conversion", lossless).within(
        1e-5, "the model that it came from", because=FLOAT32
    )
    for name, heads_ in kept.items():
        m, g = map(int, name.split(" x "))
        yield claim("cache counter", f"key heads kept, {name}", heads_).equals(m * g, "m g")
    yield claim("perplexity rises", "loss at m = 2", losses[2], over="median").at_least(
        losses[4], "loss at m = 4"
    )
    yield claim("perplexity rises", "loss at m = 1", losses[1], over="median").at_least(
        losses[2], "loss at m = 2"
    )
