"""On a GPU no layer mixes tensors that it makes itself with tensors that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.averaged_queries import Recommender, transitions
from regard.layers.conditioned import GatedPooling
from regard.layers.encoder_decoder import EncoderDecoder
from regard.layers.lie import LieTransformer
from regard.layers.location import either_way
from regard.layers.pervasive import PervasiveAttention
from regard.layers.pooling import EfficientProbing
from regard.layers.registry import get, names
from regard.layers.trees import TreeCrossAttention
from tests.pretend import Pretend, on_gpu


def tokens(*shape: int) -> Tensor:
    return on_gpu(torch.randint(1, 9, shape))


def states(*shape: int) -> Tensor:
    return on_gpu(torch.randn(shape))


@torch.no_grad()
@pytest.mark.parametrize("name", names())
def test_every_layer_runs_where_its_weights_are(name: str) -> None:
    kind = get(name)
    settings = {**kind.tiny, "causal": kind.can.causal and "context_dim" not in kind.tiny}
    layer = on_gpu(kind(**settings))
    x = states(2, kind.tiny_tokens, layer.dim)
    context = states(2, 12, layer.context_dim) if layer.crosses else None
    with Pretend():
        y = layer(x, context)
        if kind.can.decode and (layer.causal or layer.crosses):
            memory = layer.memory()
            layer(x[:, :9], context, memory=memory)
            layer(x[:, 9:10], memory=memory)
        if kind.can.padding and not layer.crosses:
            padding = torch.ones(2, x.shape[1], dtype=torch.bool)
            padding[0, -5:] = False
            layer(x, padding=on_gpu(padding))
    assert y.shape == x.shape


MODELS: dict[str, Callable[[], Any]] = {
    "pervasive": lambda: on_gpu(
        PervasiveAttention(source_vocab=9, target_vocab=9, dim=8, layers=2, growth=4)
    )(tokens(2, 5), tokens(2, 3)),
    "alignment": lambda: on_gpu(
        PervasiveAttention(source_vocab=9, target_vocab=9, dim=8, layers=2, growth=4)
    ).alignment(tokens(2, 5), tokens(2, 3), tokens(2, 3)),
    "either way": lambda: either_way(states(2, 5, 4), states(2, 1)),
    "transitions": lambda: transitions(tokens(2, 5), 9),
    "recommender": lambda: on_gpu(Recommender(items=9, dim=16))(tokens(2, 5)),
    "tree": lambda: on_gpu(TreeCrossAttention(16, heads=2))(states(2, 3, 16), states(2, 20, 16)),
    "pooling": lambda: on_gpu(EfficientProbing(16, queries=4))(states(2, 5, 16)),
    "conditioning": lambda: on_gpu(GatedPooling(8, knowledge=3))(states(2, 5, 8), states(2, 5, 3)),
    "lie": lambda: on_gpu(LieTransformer(features=3, dim=16, heads=2, out=2, turns=4))(
        states(2, 5, 3), states(2, 5, 2)
    ),
    "encoder and decoder": lambda: on_gpu(
        EncoderDecoder(dim=16, heads=2, layers=1, vocab=9)
    ).generate(tokens(2, 5), start=1, count=3),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_so_does_every_model_made_of_them(name: str) -> None:
    with Pretend():
        assert MODELS[name]() is not None
