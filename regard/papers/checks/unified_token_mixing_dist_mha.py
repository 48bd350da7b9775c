"""One attention split by rows or by heads equals plain attention."""

from __future__ import annotations

from regard.core.rule import Rule
from regard.core.support import Causal, Everything
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.shared.over_ranks import alone, drawn, over_ranks
from regard.schemes import Contiguous

NOT_HERE = "the template of mixers is no scheme; layers have their own rows"


@check(
    "unified_token_mixing_dist_mha",
    left_out={"Each mixer's explicit M": NOT_HERE, "convolution's M": NOT_HERE},
    beyond="four GPUs, and the speed of each mixer",
)
def unified() -> Claims:
    """Rows, gathered or streamed, and heads: outputs and gradients are those of one process."""
    off = {"gather": 0.0, "ring": 0.0, "heads": 0.0}
    for world in (1, 2, 4):
        for support in (Everything(), Causal()):
            q, k, v, d_out = drawn(2, 6, 2, 50, 8)
            rule, layout = Rule(support), Contiguous(50, world)
            one = alone(q, k, v, d_out, rule)
            for scheme in off:
                many = over_ranks(q, k, v, d_out, rule, layout, scheme)
                off[scheme] = max(off[scheme], many.off(one))
    for scheme, most in off.items():
        yield claim("equal to plain attention", f"difference of {scheme}", most).within(
            1e-5, "one process", because=CATALOGUE
        )
