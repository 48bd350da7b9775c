"""Wrong uses of layers, each with a clear error that names the argument."""

import pytest
import torch

import regard
from regard.core.errors import RegardError
from regard.layers import Attention, Layer, Rotary, register
from regard.layers.building import model
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.pooling import EfficientProbing
from regard.layers.positions import Relative, Sinusoidal

X = torch.randn(2, 6, 32)
TRUE = torch.ones(2, 6, dtype=torch.bool)


def make(name="mha", **settings):
    return regard.layer(name, **{"dim": 32, "heads": 4, **settings})


def causal_memory(layer):
    memory = layer.memory()
    layer(X, memory=memory)
    return memory


CAUSAL, AHEAD, CROSS = make(causal=True), make(), make(context_dim=8)
TWIN = make(causal=True)  # alike, and yet another layer

# What is tried, and the argument that the error must name.
WRONG = {
    "no such layer": (lambda: make("mhaa"), "name"),
    "a path to nothing": (lambda: make("regard.layers:Nothing"), "name"),
    "a setting of no one": (lambda: make(head=3), "settings"),
    "dim of zero": (lambda: make(dim=0), "dim"),
    "dim in floats": (lambda: make(dim=32.0), "dim"),
    "no heads": (lambda: make(heads=0), "heads"),
    "heads that divide nothing": (lambda: make(heads=5), "heads"),
    "key heads that divide nothing": (lambda: make(kv_heads=3), "kv_heads"),
    "key heads of zero": (lambda: make(kv_heads=0), "kv_heads"),
    "head size of zero": (lambda: make(head_dim=0), "head_dim"),
    "value size of zero": (lambda: make(value_dim=0), "value_dim"),
    "dropout of one": (lambda: make(dropout=1.0), "dropout"),
    "dropout in words": (lambda: make(dropout="some"), "dropout"),
    "unknown position": (lambda: make(position="rope"), "position"),
    "position across": (lambda: make(context_dim=8, position="rotary"), "position"),
    "causal across": (lambda: make(context_dim=8, causal=True), "causal"),
    "odd channels turned": (lambda: make(dim=12, heads=4, position="rotary")(X[..., :12]), "d"),
    "support of no kind": (lambda: make(support=3), "support"),
    "score of no kind": (lambda: make(score=3).rule(), "score"),
    "weigh of no kind": (lambda: make(weigh=3).rule(), "weigh"),
    "rotation of base 0": (lambda: Rotary(base=0.0), "base"),
    "reach of zero": (lambda: Relative(4, 0), "reach"),
    "odd sinusoids": (lambda: Sinusoidal(7), "dim"),
    "no batch": (lambda: AHEAD(X[0]), "x"),
    "other channels": (lambda: AHEAD(X[..., :16]), "x"),
    "other dtype": (lambda: AHEAD(X.double()), "x"),
    "whole numbers": (lambda: AHEAD(X.long()), "x"),
    "no tensor": (lambda: AHEAD([1, 2]), "x"),
    "context for the causal": (lambda: CAUSAL(X, X), "context"),
    "no context": (lambda: CROSS(X), "context"),
    "context of other channels": (lambda: CROSS(X, X), "context"),
    "context of other batch": (lambda: CROSS(X, torch.randn(3, 4, 8)), "context"),
    "context without batch": (lambda: CROSS(X, torch.randn(4, 8)), "context"),
    "padding of other tokens": (lambda: AHEAD(X, padding=TRUE[:, :4]), "padding"),
    "padding in numbers": (lambda: AHEAD(X, padding=TRUE.float()), "padding"),
    "padding as a list": (lambda: AHEAD(X, padding=[1, 1]), "padding"),
    "documents of other tokens": (lambda: AHEAD(X, documents=TRUE[:, :4].long()), "documents"),
    "documents in floats": (lambda: AHEAD(X, documents=TRUE.float()), "documents"),
    "documents of one side": (
        lambda: CROSS(X, torch.randn(2, 4, 8), documents=TRUE.long()),
        "context_documents",
    ),
    "positions of other tokens": (lambda: AHEAD(X, positions=torch.arange(3)), "positions"),
    "positions in floats": (lambda: AHEAD(X, positions=torch.rand(6)), "positions"),
    "memory of a layer that looks ahead": (lambda: AHEAD(X, memory=AHEAD.memory()), "memory"),
    "memory of another layer": (lambda: CAUSAL(X, memory=TWIN.memory()), "memory"),
    "memory of another kind": (lambda: CAUSAL(X, memory=make("retention").memory()), "memory"),
    "memory of other sizes": (
        lambda: CAUSAL(X, memory=make(causal=True, kv_heads=2).memory()),
        "memory",
    ),
    "memory as a dict": (lambda: CAUSAL(X, memory={}), "memory"),
    "memory of another batch": (lambda: CAUSAL(X[:1], memory=causal_memory(CAUSAL)), "x"),
    "memory beside documents": (
        lambda: CAUSAL(X, memory=CAUSAL.memory(), documents=TRUE.long()),
        "documents",
    ),
    "a running state that looks ahead": (lambda: make("retention", causal=False), "causal"),
    "a running state across": (lambda: make("gla", context_dim=8), "context_dim"),
    "agents that are causal": (lambda: make("agent_attention", causal=True), "causal"),
    "agents that decode": (lambda: make("agent_attention").memory(), "memory"),
    "a grid of other tokens": (
        lambda: make("natten", grid=(3, 3), window=3)(X),
        "x",
    ),
    "a window beyond the grid": (lambda: make("natten", grid=(3, 3), window=5), "kernel"),
    "left padding of blocks": (
        lambda: make("moba", block=2)(X, padding=~TRUE.cumprod(1).bool()),
        "padding",
    ),
    "more active heads than heads": (lambda: make("moh", active=9), "active"),
    "shared heads above active": (lambda: make("moh", active=2, shared=3), "active"),
    "one expert": (lambda: make("mae_attentive_experts", heads=1), "heads"),
    "depth beyond the layers": (lambda: make("lightning_attention", depth=3, layers=2), "depth"),
    "order of three": (lambda: make("fastmax", order=3), "order"),
    "no length": (lambda: make("sigmoid_attention", length=0), "length"),
    "offsets of other heads": (lambda: make("s2_attention", offsets=[0]), "offsets"),
    "a block without tokens": (lambda: make("landmark_attention", block=1), "size"),
    "bits in part of a group": (
        lambda: regard.layer("sdim", 32, bits=10, group=3, context_dim=32),
        "bits",
    ),
    "a source of other width": (lambda: regard.layer("sdim", 32, context_dim=8), "context_dim"),
    "alignment without a source": (lambda: regard.layer("luong_attention", 32), "context_dim"),
    "an unknown match": (
        lambda: regard.layer("luong_attention", 32, context_dim=8, matching="cosine"),
        "matching",
    ),
    "longer than made for": (
        lambda: regard.layer("aft", 32, longest=4)(X),
        "x",
    ),
    "fixed tokens": (lambda: regard.layer("ninformer", 32, tokens=7)(X), "x"),
    "queries that divide nothing": (lambda: EfficientProbing(32, queries=5), "queries"),
    "taps of none": (lambda: DepthwiseConvolution(3, size=0, causal=True, name="x"), "size"),
    "no layer to register": (lambda: register("x")(int), "layer"),
    "a name that is taken": (lambda: register("mha")(type("Other", (Layer,), {})), "name"),
    "a model of strings of nothing": (lambda: model("", dim=8, vocab=9), "layers"),
    "a cross layer as a mixer of itself": (lambda: Attention(32, 4, context_dim=8)(X), "context"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_names_the_argument(name):
    attempt, argument = WRONG[name]
    with pytest.raises(RegardError) as raised:
        attempt()
    assert raised.value.argument == argument, str(raised.value)


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [("mha", "positon", "position"), ("luong_local_m", "reech", "reach")],
)
def test_a_misspelt_setting_is_told_with_the_one_that_is_meant(name, wrong, near):
    needed = {"heads": 4} if name == "mha" else {"context_dim": 8}
    with pytest.raises(RegardError, match=f"{wrong}.*did you mean '{near}'"):
        regard.layer(name, 32, **{**needed, wrong: 1})


def test_there_are_many():
    assert len(WRONG) >= 50
