"""Later sinks give weight back: rows sum to one, ratios are kept, the first token is left."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.controls.sink_calibration import LaterSinks, SinkCalibration
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.run.runner import run

SINK = 7


def _call(n: int = 24, size: int = 8) -> Call:
    """Draw a call whose keys 0 and 7 fit every query."""
    q, k, v = (torch.randn(2, h, n, size, dtype=torch.float64) for h in (4, 2, 2))
    way = torch.zeros(size, dtype=torch.float64)
    way[0] = 1.0
    # What was not planted is even: no other key is a sink by chance.
    q, k = 0.5 * q + 4 * way, 0.5 * k
    k[..., 0] *= 0.2
    k[:, :, [0, SINK]] = 2.5 * way
    return Call.of(q, k, v, Rule(Causal()))


def _edited(call: Call, beta: float, times: float = 5.0) -> Call:
    at = EditContext(call, Prompt(torch.zeros(call.b, call.n).long()))
    return SinkCalibration(strength=1 - beta, times=times).edits()[0].before(at)


def _weights(call: Call) -> Tensor:
    found = run(call, ("weights",)).weights
    assert found is not None
    return found


def _accuracy(beta: float) -> float:
    """Classify by the value of what a head looks at: one of 24 keys fits, the sink distracts."""
    n, many = 24, 64
    q = torch.randn(many, 1, n, 8, dtype=torch.float64)
    k = 0.3 * torch.randn(many, 1, n, 8, dtype=torch.float64)
    q[..., 0] = 4.0
    k[:, :, [0, SINK]] = 0.0
    k[:, :, [0, SINK], 0] = 2.2
    label = torch.randint(0, 2, (many,)) * 2 - 1
    fits = torch.randint(8, n - 1, (many,))
    v = torch.zeros(many, 1, n, 2, dtype=torch.float64)
    rows = torch.arange(many)
    k[rows, 0, fits] = 0.35 * q[rows, 0, -1]
    k[rows, 0, fits, 0] = 0.0
    v[rows, 0, fits, 0] = label.double()
    v[:, :, SINK, 0] = -0.5 * label.double()[:, None]  # what distracts says the other
    call = Call.of(q, k, v, Rule(Causal()))
    new = call if beta == 1 else _edited(call, beta)  # because: 1 is the model as it is
    return float((run(new).out[:, 0, -1, 0].sign() == label).double().mean())


@check(
    "act_attention_calibration",
    beyond="Llama models and the choice of heads on held-out data",
)
def act() -> Claims:
    """Later sinks give weight back: rows sum to one, ratios are kept, the first token is left."""
    call = _call()
    at = EditContext(call, Prompt(torch.zeros(call.b, call.n).long()))
    old, new = _weights(call), _weights(_edited(call, 0.4))
    sinks = LaterSinks(5.0).mask(at)
    found = sinks.nonzero()[:, 2].unique().tolist()
    future = float(new[..., torch.ones(24, 24).triu(1).bool()].abs().max())
    before = EditContext(call, Prompt(torch.zeros(call.b, call.n).long()))
    same = SinkCalibration(strength=0.0).edits()[0].before(before)
    none = _edited(call, 0.4, times=24.0)
    rest = [j for j in range(24) if j != SINK]
    a, b = (x[:, :, -1, rest] / x[:, :, -1, rest].sum(-1, keepdim=True) for x in (old, new))
    yield claim(
        "Rows still sum to 1", "distance of a row's sum", gap(new.sum(-1), old.sum(-1))
    ).within(1e-12, "1", because=FLOAT64)
    yield claim("Rows still sum to 1", "weight on the future", future).equals(0.0, "none")
    yield claim("beta=1 or thr=1", "whether beta = 1 gives the same call", same is call).equals(
        True, "the call itself"
    )
    yield claim("beta=1 or thr=1", "difference at thr = 1", gap(_weights(none), old)).within(
        1e-12, "the unchanged weights", because=FLOAT64
    )
    yield claim("ratios among non-sink", "difference of shares", gap(a, b)).within(
        1e-12, "shares of the unchanged weights", because=FLOAT64
    )
    kept = gap(new[:, :, -1, SINK], 0.4 * old[:, :, -1, SINK])
    yield claim("ratios among non-sink", "difference of the sink's weight", kept).within(
        1e-12, "0.4 of it", because=FLOAT64
    )
    yield claim("planted sink at position 7", "sinks", str(found)).equals("[7]", "the planted one")
    improved = _accuracy(0.4)
    yield claim("a toy classifier head", "accuracy at beta = 0.4", improved, over="median").above(
        _accuracy(1.0), "of the head as it is"
    )
