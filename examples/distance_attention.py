"""A mechanism of your own: each head learns how far it sees.

Try its laws: pytest --pyargs regard.conformance --layer examples.distance_attention:NearAttention
"""

import torch
from torch import nn

from regard import DistanceBias
from regard.layers import Attention, Capabilities, register


@register("near")
class NearAttention(Attention):
    """Scores fall off with distance, at a width that each head learns: `s - (i - j)^2 / 2 w^2`."""

    can = Capabilities(cross=False, multihead_weights=True)

    def __init__(self, dim, heads, *, width=16.0, **settings):
        super().__init__(dim, heads, **settings)
        self.log_width = nn.Parameter(torch.full((heads,), width).log())

    def score(self):
        """Add the fall-off to the scaled dot product."""
        return super().score() + DistanceBias(self.log_width.exp())
