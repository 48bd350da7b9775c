"""Translation by 2-D convolution over source and target tokens (pervasive attention)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ShapeError, fail, shape_of
from regard.core.method import method
from regard.layers.arguments import need_size
from regard.layers.positions import Sinusoidal
from regard.layers.stack import pick

# The rows of each layer's inner features that later target rows still see.
Rows = list[Tensor]


class GridLayer(nn.Module):
    """One dense layer: new channels from a convolution that is causal in the target."""

    def __init__(self, channels: int, growth: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.narrow = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(),
        )  # fmt: skip
        self.convolve = nn.Conv2d(4 * growth, growth, kernel, bias=False)

    def forward(self, x: Tensor, real: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add channels to x [b, c, t, s]; also return the last rows, for the next target tokens."""
        y = self.narrow(x) * real
        rows = self.kernel - 1
        early = F.pad(y, (0, 0, rows, 0)) if before is None else torch.cat((before, y), 2)
        side = self.kernel // 2
        new = self.convolve(F.pad(early, (side, side, 0, 0)))
        return torch.cat((x, new), 1), early[:, :, early.shape[2] - rows :]


@method(
    "pervasive_attention",
    call="import regard\nfrom regard.layers.pervasive import PervasiveAttention\n"
    "model = PervasiveAttention(source_vocab=1000, target_vocab=1000)",
)
class PervasiveAttention(nn.Module):
    """Score target tokens from a grid with a cell for each target and source token.

    Cell (i, j) starts as the embeddings of target token i (those before the one that is scored) and
    source token j; dense convolutions see all of the source and the past of the target, and each
    target token takes the maximum over the source. There is no encoder.

    >>> model = PervasiveAttention(source_vocab=9, target_vocab=7, dim=8, layers=2, growth=4)
    >>> model(torch.randint(0, 9, (2, 5)), torch.randint(0, 7, (2, 3))).shape
    torch.Size([2, 3, 7])
    """

    def __init__(
        self, *, source_vocab: int, target_vocab: int, dim: int = 128, layers: int = 24,
        growth: int = 32, kernel: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        need_size("layers", layers)
        need_size("kernel", kernel)
        if kernel % 2 == 0:
            fail(ShapeError, "kernel", kernel, "an odd size", "pass kernel=3 or 5")
        self.source, self.target = nn.Embedding(source_vocab, dim), nn.Embedding(target_vocab, dim)
        self.places = Sinusoidal(dim)
        channels = [2 * dim + i * growth for i in range(layers + 1)]
        self.layers = nn.ModuleList(GridLayer(c, growth, kernel) for c in channels[:-1])
        self.last = nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.ReLU())
        self.to_words = nn.Linear(channels[-1], target_vocab)

    def grid(
        self, source: Tensor, target: Tensor, padding: Tensor | None = None,
        before: Rows | None = None, start: int = 0,
    ) -> tuple[Tensor, Rows]:  # fmt: skip
        """Compute the grid for target tokens from `start` on: [b, c, t, s], and its last rows."""
        for name, x in (("source", source), ("target", target)):
            if not isinstance(x, Tensor) or x.dim() != 2 or x.is_floating_point():
                fail(ShapeError, name, shape_of(x), "integers [b, n]", "add the batch axis")
        t, s = target.shape[1], source.shape[1]
        places = torch.arange(max(start + t, s), device=source.device)
        of_target = self.target(target) + self.places(places[start : start + t])
        of_source = self.source(source) + self.places(places[:s])
        wide = of_target[:, :, None].expand(-1, -1, s, -1)
        x = torch.cat((wide, of_source[:, None].expand(-1, t, -1, -1)), -1).permute(0, 3, 1, 2)
        real = x.new_ones(len(x), 1, 1, s) if padding is None else padding[:, None, None].to(x)
        rows = []
        for number, layer in enumerate(self.layers):
            x, last = layer(x, real, None if before is None else before[number])
            rows.append(last)
        x = self.last(x)
        return x.masked_fill(real == 0, -torch.inf), rows

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        """Score the token after each of target [b, t]: [b, t, words]."""
        return self.words(self.grid(source, target, padding)[0])

    def words(self, cells: Tensor) -> Tensor:
        """Reduce the source by its maximum, and score words."""
        scores: Tensor = self.to_words(cells.amax(-1).transpose(1, 2))
        return scores

    @torch.no_grad()
    def alignment(
        self, source: Tensor, target: Tensor, words: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Attribute each of `words` [b, t] to source tokens: shares [b, t, s].

        A channel counts for the token at which it is largest, by how much more it adds to the score
        of the word than to words on average. With a kernel of 3 that may be a neighbor.
        """
        cells, _ = self.grid(source, target, padding)
        best, place = cells.max(-1)  # [b, c, t]
        weight = self.to_words.weight - self.to_words.weight.mean(0)
        adds = (best.transpose(1, 2) * weight[words]).clamp_min(0)
        shares = adds.new_zeros(*words.shape, source.shape[1])
        shares = shares.scatter_add(-1, place.transpose(1, 2), adds)
        return shares / shares.sum(-1, keepdim=True).clamp_min(1e-9)

    @torch.no_grad()
    def generate(
        self, source: Tensor, *, start: int, count: int, padding: Tensor | None = None,
        temperature: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Generate `count` tokens after `start`, a row of the grid for each: [b, 1 + count]."""
        fed, rows, made = torch.full_like(source[:, :1], start), None, []
        made.append(fed)
        for place in range(count):
            cells, rows = self.grid(source, fed, padding, rows, place)
            fed = pick(self.words(cells)[:, -1], temperature)[:, None]
            made.append(fed)
        return torch.cat(made, 1)
