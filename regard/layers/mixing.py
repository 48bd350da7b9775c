"""What a layer does along the sequence, as one matrix, for any mixer.

`Y = f(M(X) X W)`: tokens are mixed by `M`, then features. `mixing_matrix` reads `M` off any mixer
that is linear in its values, attention with its queries and keys held still among them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.core.method import method


@method(
    "unified_token_mixing_dist_mha",
    call="import regard, torch\n"
    "from regard.layers.mixing import mixing_matrix\n"
    "q, k = torch.randn(2, 1, 2, 6, 8)\n"
    "m = mixing_matrix(lambda v: regard.attend(q, k, v), torch.randn(1, 2, 6, 8))",
)
@torch.no_grad()
def mixing_matrix(mixer: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return M [..., d, n, n] of a mixer of values [..., n, d]: out[i] = sum_j M[:, i, j] v[j].

    The mixer is run on one token at a time, 1 in every channel: it must be linear in its values and
    not mix channels. A mixer without other inputs (a Fourier transform, a convolution) has the same
    matrix for all values.

    >>> from regard.run.api import attend
    >>> q, v = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    >>> m = mixing_matrix(lambda v: attend(q, q, v), v)
    >>> torch.allclose(torch.einsum("bhcij,bhjc->bhic", m, v), attend(q, q, v), atol=1e-6)
    True
    """
    columns = []
    for token in range(values.shape[-2]):
        basis = torch.zeros_like(values)
        basis[..., token, :] = 1.0
        columns.append(mixer(basis))  # [..., n, d]: column `token` of M, for each channel
    return torch.stack(columns, -1).transpose(-3, -2)


class FourierMixing(nn.Module):
    """Mix tokens by the real part of a Fourier transform (FNet), without parameters.

    >>> FourierMixing()(torch.eye(4)[None])[0, 1].round(decimals=4).tolist()
    [1.0, 0.0, -1.0, 0.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [..., n, d]."""
        mixed: Tensor = torch.fft.fft(x, dim=-2).real
        return mixed
