"""Flows are conserved, the linear form is the matrix form, the future changes nothing."""

from __future__ import annotations

import torch

from regard.layers.flow_attention import EPS, FlowAttention
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.linear_cost import flops_ratio, scene_of, traffic_ratio
from regard.papers.shared.measure import gap


@check("flow_attention")
def flow() -> Claims:
    """Flows are conserved, the linear form is the matrix form, the future changes nothing."""
    layer, x = FlowAttention(32, heads=2, causal=False).double(), torch.randn(1, 20, 32).double()
    q, (k, v) = layer.queries(x), layer.keys(x)
    flows = layer.flows(q, k, scene_of(x))
    pairs = (q + EPS) @ (k + EPS).mT
    taken = gap((pairs / flows.incoming).sum(-1), torch.ones(1, 2, 20).double())
    given = gap((pairs / flows.outgoing.mT).sum(-2), torch.ones(1, 2, 20).double())
    competing = v * 20 * flows.conserved_out.softmax(2)
    matrix = (q / flows.incoming) @ k.mT @ competing * flows.conserved_in.sigmoid()
    written = gap(layer.look(q, k, v, scene_of(x)), matrix)
    causal, y = FlowAttention(32, heads=2, causal=True), torch.randn(1, 20, 32, requires_grad=True)
    (pull,) = torch.autograd.grad(causal(y)[:, 9].sum(), y)
    leak, work = float(pull[:, 10:].abs().max()), flops_ratio(causal, 1024)
    yield claim("Conservation", "distance of incoming flows from 1", taken).within(
        1e-5, "1", because=CATALOGUE
    )
    yield claim("Conservation", "distance of outgoing flows from 1", given).within(
        1e-5, "1", because=CATALOGUE
    )
    yield claim("linear-form output", "difference from the n x m form", written).within(
        1e-5, "the explicit matrix", because=FLOAT64
    )
    yield claim("causal form has zero", "largest gradient to the future", leak).equals(0.0, "none")
    yield claim("runtime scales", "operations a token at 8k", work).at_most(
        1, "at 1k", times=1.05, because="a quadratic term would make it 8 times"
    )
    yield claim(
        "runtime scales", "bytes read and written a token at 8k", traffic_ratio(causal, 1024)
    ).at_most(1, "at 1k", times=1.05, because="a quadratic term would make it 8 times")
