"""Claims of rows that core and run carry by themselves: a value, a scan, or an executor is all.

They stand here, and not as decorators, so that core and run read as if no paper existed.
"""

from __future__ import annotations

from regard.core.method import method
from regard.core.score.contents import LowRankBias
from regard.core.support.lattice import Neighborhood
from regard.core.support.tokens import SharedPrefix
from regard.core.weigh import Signed
from regard.run.chunked import Chunked
from regard.run.flex import Flex
from regard.run.scanning import scan


def _attend(rule: str) -> str:
    """Write a call of `attend` that runs as it stands."""
    return (
        "import torch, regard\n"
        f"q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))\n"
        f"out = regard.attend(q, k, v, {rule})"
    )


method("chunked_attention", call=_attend('executor="chunked"'))(Chunked)
method("cog_attention", call=_attend("regard.Signed()"))(Signed)
# A prompt of 512 tokens, a chosen answer of 200, a rejected one of 312.
method("dpo_prefix_sharing", call=_attend("regard.SharedPrefix(512, (200, 312))"))(SharedPrefix)
method(
    "flashbias",
    call="import torch, regard\n"
    "q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))\n"
    "u, w = torch.randn(1, 8, 1024, 4), torch.randn(1, 8, 1024, 4)  # the bias is u @ w.mT\n"
    "out = regard.attend(q, k, v, regard.Dot() + regard.LowRankBias(u, w))",
)(LowRankBias)
method(
    "flex_attention",
    call=_attend('regard.Causal() & regard.Window(128), executor="flex"'),
)(Flex)
method("gna", call=_attend("regard.Neighborhood((8, 8), (32, 32), stride=(4, 4))"))(Neighborhood)
method("lightning_attention_2")(scan)
