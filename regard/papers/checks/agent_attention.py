"""Weights through agents are rows of one, of low rank; the cost is linear."""

from __future__ import annotations

import torch

from regard.layers.agents import AgentAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.linear_cost import flops_ratio, scene_of
from regard.papers.shared.measure import gap


@check("agent_attention")
def agents() -> Claims:
    """Weights through agents are rows of one, of low rank; the cost is linear."""
    layer, x = AgentAttention(32, heads=2, agents=6), torch.randn(1, 60, 32)
    q, (k, v) = layer.queries(x), layer.keys(x)
    a = layer.pool(q)
    weights = (q @ a.mT / 4).softmax(-1) @ (a @ k.mT / 4).softmax(-1)
    written = gap(layer.look(layer.call(scene_of(x)), scene_of(x)), weights @ v)
    sums = gap(weights.sum(-1), torch.ones(1, 2, 60))
    rank = int(torch.linalg.matrix_rank(weights.double(), atol=1e-5).max())
    call = layer.call(scene_of(x))
    constant = torch.randn(16).expand(1, 2, 60, 16)
    same = gap(layer.look(call.replace(v=constant), scene_of(x)), constant)
    work = flops_ratio(layer)
    yield claim("Rows of softmax", "distance of row sums from 1", sums).within(
        1e-5, "1", because=FLOAT32
    )
    yield claim("Rows of softmax", "rank of 6 agents", rank).at_most(
        6, "the number of agents", because="6 are asked for"
    )
    yield claim("Rows of softmax", "difference of the layer", written).within(
        1e-5, "the weights written out", because=FLOAT32
    )
    yield claim("multiply-adds grow", "operations a token, 8 times the length", work).at_most(
        1, "at the shorter length", times=1.05, because="a quadratic term would make it 8 times"
    )
    yield claim("With DWC off", "difference", same).within(1e-5, "V", because=FLOAT32)
