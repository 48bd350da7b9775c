"""Moving averages of each channel, carried on token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.scan import starts
from regard.layers.arguments import need_size
from regard.layers.inputs import LayerInput
from regard.run.scanning import scan


class DampedAverage(nn.Module):
    """A damped exponential moving average of each channel, `size` rates a channel (Mega's EMA).

    `s_t = a (b x_t) + (1 - a d) s_{t-1}`, `y_t = sum_rates c s_t`, with a and d between 0 and 1.
    A bidirectional layer adds another that runs from the end. The state is kept in the input's
    memory under `name`; padding leaves it as it is, and each packed document has its own.

    >>> x = torch.randn(1, 5, 4)
    >>> DampedAverage(4, size=2)(x, LayerInput(x, x, False, torch.arange(5))).shape
    torch.Size([1, 5, 4])
    """

    def __init__(
        self, channels: int, *, size: int = 16, causal: bool = True, name: str = "average"
    ) -> None:
        super().__init__()
        need_size("size", size)
        self.causal, self.name = causal, name
        ways = 1 if causal else 2
        self.rates = nn.Parameter(0.2 * torch.randn(2, ways, channels, size))
        self.into = nn.Parameter(torch.randn(ways, channels, size) * size**-0.5)
        self.out = nn.Parameter(torch.randn(ways, channels, size) * size**-0.5)

    def forward(self, x: Tensor, input: LayerInput) -> Tensor:
        """Average x [b, n, c]."""
        state = None if input.memory is None else input.memory.get(self.name)
        y, state = self._one_way(0, x, input.padding, input.documents, state)
        if input.memory is not None:
            input.memory.keep(self.name, state)
        if not self.causal:
            keep, documents = (
                None if t is None else t.flip(1) for t in (input.padding, input.documents)
            )
            back, _ = self._one_way(1, x.flip(1), keep, documents, None)
            y = y + back.flip(1)
        return y

    def _one_way(
        self, way: int, x: Tensor, keep: Tensor | None, documents: Tensor | None, state: object
    ) -> tuple[Tensor, object]:
        """Scan with one head a channel: its state holds one number for each rate."""
        a, d = self.rates[:, way].sigmoid()
        shape = (len(x), -1, x.shape[1], -1)
        k = (a * self.into[way])[None, :, None].expand(shape)
        q = self.out[way][None, :, None].expand(shape)
        y, state = scan(
            q, k, x.mT[..., None].to(k.dtype),  # under autocast x may be narrower than the rates
            log_decay=torch.log1p(-a * d),
            state=state,  # type: ignore[arg-type]
            keep=keep,
            reset=None if documents is None else starts(documents),
        )  # fmt: skip
        return y[..., 0].mT, state
