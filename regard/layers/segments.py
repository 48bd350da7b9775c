"""Long sequences read window by window, with a cell passed from one to the next (RAN)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.attention import Attention
from regard.layers.base import Layer
from regard.layers.inputs import Capabilities, LayerInput
from regard.layers.registry import register


class Cells(NamedTuple):
    """The state between windows: the cell and its value before normalization, both [b, 1, dim]."""

    cell: Tensor
    before: Tensor | None


class GatedMap(nn.Module):
    """A linear map gated by another of the same input: `(x A) * sigmoid(x B)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_both = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map and gate."""
        return F.glu(self.to_both(x), -1)


@register("ran_recurrent_attention")
@method(
    "ran_recurrent_attention",
    call='import regard\nlayer = regard.layer("ran_recurrent_attention", 256, heads=8, window=128)',
)
class RecurrentWindows(Layer):
    """Attention inside windows, a recurrent cell in front of each, and a final review (RAN).

    In each window the cell and its tokens attend to one another; the new cell, gated with the old
    one, comes before the next window. At the end all tokens attend to all cells, so tokens see
    ahead within their window and through the cells: the layer neither is causal nor decodes, but
    `read` carries the cell on from one piece of a text to the next. Sequences of different lengths
    are read apart, each in windows from its own first token.

    >>> RecurrentWindows(32, heads=4, window=4)(torch.randn(1, 11, 32)).shape
    torch.Size([1, 11, 32])
    """

    can: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, decode=False, documents=False, linear=False
    )
    tiny: ClassVar[dict[str, Any]] = {"dim": 32, "heads": 4, "window": 8}

    def __init__(
        self, dim: int, heads: int, *, window: int = 128, least: int = 16, causal: bool = False,
        context_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, causal=causal, context_dim=context_dim)
        need_size("window", window)
        need_size("least", least, 0)
        self.window, self.least = window, least
        self.inside = Attention(dim, heads, position="rotary", bias=True)
        self.review = Attention(dim, 1, bias=True)
        self.start = nn.Parameter(torch.randn(1, 1, dim))
        self.gates = nn.ModuleList(GatedMap(dim) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def first(self, batch: int) -> Cells:
        """Return the cell before the first window."""
        return Cells(self.norms[0](F.silu(self.start)).expand(batch, -1, -1), None)

    def step(self, x: Tensor, cells: Cells) -> tuple[Tensor, Tensor, Cells]:
        """Read one window x [b, w, dim]: its tokens, its cell [b, 1, dim], and the next state."""
        u = self.norms[1](torch.cat((cells.cell, x), 1))
        z = self.norms[2](self.inside(u) + self.gates[0](u))
        cell, tokens = _plain(z[:, :1]), _plain(z[:, 1:])
        go_on = cell if cells.before is None else cell + self.gates[1](cells.before)
        return tokens, cell, Cells(self.norms[3](go_on), cell)

    def windows(self, x: Tensor) -> list[Tensor]:
        """Split x into windows; a last one shorter than `least` is joined to the one before."""
        pieces = list(x.split(self.window, dim=1))
        if len(pieces) > 1 and pieces[-1].shape[1] < min(self.least, self.window):
            pieces[-2:] = [torch.cat(pieces[-2:], 1)]
        return pieces

    def read(self, x: Tensor, cells: Cells | None = None) -> tuple[Tensor, Tensor, Cells]:
        """Read all windows: tokens [b, n, dim], cells [b, windows, dim], and the state after."""
        state = self.first(len(x)) if cells is None else cells
        tokens, found = [], []
        for piece in self.windows(x):
            out, cell, state = self.step(piece, state)
            tokens.append(out)
            found.append(cell)
        return torch.cat(tokens, 1), torch.cat(found, 1), state

    def compute(self, input: LayerInput) -> Tensor:
        """Read, and attend from every token to all cells."""
        if input.padding is None:
            return self.reviewed(input.x)
        counts, y = input.padding.sum(1), torch.zeros_like(input.x)
        for length in counts.unique().tolist():
            rows = (counts == length).nonzero()[:, 0]
            if length:
                places = input.padding[rows].nonzero()[:, 1].view(-1, length)
                found = self.reviewed(input.x[rows[:, None], places])
                y = y.to(found.dtype).index_put((rows[:, None], places), found)
        return y

    def reviewed(self, x: Tensor) -> Tensor:
        """Read x [b, n, dim] without padding, and let its tokens attend to all cells."""
        tokens, cells, _ = self.read(x)
        reviewed: Tensor = self.review(tokens, cells) + self.gates[2](tokens)
        return reviewed


def _plain(x: Tensor) -> Tensor:
    """Standardize each vector."""
    return F.layer_norm(x, x.shape[-1:])
