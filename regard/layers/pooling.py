"""Pool tokens into one vector by attention, for a probe on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.method import method
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Everything, Padding
from regard.layers.arguments import need_divisor, need_size
from regard.layers.attention import split
from regard.run.api import attend


@method(
    "efficient_probing",
    call="import regard\nfrom regard.layers.pooling import EfficientProbing\n"
    "probe = EfficientProbing(768, queries=32)  # before BatchNorm and a linear classifier",
)
class EfficientProbing(nn.Module):
    """Learned queries attend to features directly, each averaging its own slice of the values.

    `z_m = sum_n softmax_n(u_m x_n / sqrt(D)) (x_n W_V)[slice m]`; there are no query or key
    projections. Maps features [b, n, dim] to [b, out]; `padding` [b, n] is true at real tokens.

    >>> EfficientProbing(64, queries=8)(torch.randn(2, 10, 64)).shape
    torch.Size([2, 64])
    """

    def __init__(self, dim: int, *, queries: int = 32, out: int | None = None) -> None:
        super().__init__()
        out = dim if out is None else out
        need_size("dim", dim)
        need_size("queries", queries)
        need_divisor("queries", queries, "channels that come out", out)
        self.queries = nn.Parameter(0.02 * torch.randn(queries, 1, dim))
        self.to_v = nn.Linear(dim, out, bias=False)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Pool the tokens: [b, n, dim] to [b, out]."""
        heads = len(self.queries)
        k = x[:, None].expand(-1, heads, -1, -1)
        support = Everything() if padding is None else Padding(padding)
        rule = Rule(support, Dot(x.shape[-1] ** -0.5))
        q = self.queries.to(x.dtype).expand(len(x), -1, -1, -1)
        pooled: Tensor = attend(q, k, split(self.to_v(x), heads), rule)
        return pooled.flatten(1)
