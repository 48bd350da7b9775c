"""Known maps have their known rates, and a key of no value takes weight and gives nothing."""

from __future__ import annotations

import torch

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.core.weigh import Softmax
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.copier_models import CAUSAL, looked, pointing
from regard.probes.sinks import SinkRate
from regard.run.api import attend


@check(
    "attention_sink_metric",
    beyond="pretraining of 60M-parameter variants, where sinks arise",
    same="maps are given; random keys beside a sink only show zero",
)
def sinks() -> Claims:
    """Known maps have their known rates, and a key of no value takes weight and gives nothing."""
    uniform = Call.of(*(torch.zeros(2, 3, 64, 4),) * 3, CAUSAL)
    alpha = float(looked(SinkRate(), uniform).mean())
    wanted = sum(1 / i for i in range(1, 65)) / 64
    resting, none = SinkRate(), SinkRate()
    looked(resting, pointing(torch.zeros(4, 64, dtype=torch.long)))
    looked(none, uniform)
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    sink = torch.full((2,), 50.0)
    rule = Rule(Causal(), weigh=Softmax(sink=sink))
    on_tokens = float(attend(q, k, torch.ones_like(v), rule).max())
    gone = float(attend(q, k, v, Rule(Causal(), weigh=Softmax(sink=sink))).abs().max())
    yield claim("Exact values", "alpha_1 of 64 tokens", alpha).within(
        1e-6, "mean of 1/i", value=wanted, because=FLOAT32
    )
    yield claim(
        "Exact values", "share of heads with a sink at 0.3", none.told().details["rate"]
    ).equals(0.0, "none")
    yield claim("all-to-first gives", "Sink_1", resting.told().details["rate"]).equals(1.0, "100%")
    yield claim("With K bias", "largest output beside it", gone).within(
        1e-6, "zero", because=FLOAT32
    )
    yield claim("With K bias", "largest sum of weights on tokens", on_tokens).below(
        1, "1", because="what the sink takes is missing"
    )
