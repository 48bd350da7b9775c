"""One attention split by rows or by heads equals plain attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regard.core.rule import Rule
from regard.core.support import Causal, Everything, Window
from regard.layers.convolution import DepthwiseConvolution
from regard.layers.mixing import FourierMixing, mixing_matrix
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import scene_of
from regard.papers.shared.measure import gap
from regard.papers.shared.over_ranks import alone, drawn, over_ranks
from regard.run.api import attend
from regard.run.scanning import scan
from regard.schemes import Contiguous


@check(
    "unified_token_mixing_dist_mha",
    beyond="four GPUs, and the speed of each mixer",
)
def unified() -> Claims:
    """Rows, gathered or streamed, and heads are one process; what mixes tokens is a matrix."""
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

    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    taps = DepthwiseConvolution(8, size=5, causal=True, name="taps")
    fourier = FourierMixing()

    def convolved(v: Tensor) -> Tensor:
        return torch.stack([taps(x, scene_of(x)).detach() for x in v.unbind(1)], 1)

    mixers: dict[str, Callable[[Tensor], Tensor]] = {
        "attention": lambda v: attend(q, k, v),
        "attention under a mask": lambda v: attend(q, k, v, Causal() & Window(9)),
        "linear attention": lambda v: scan(q.exp(), k.exp(), v)[0],
        "a convolution": convolved,
        "a Fourier transform": fourier,
    }
    made = {name: mixing_matrix(mixer, v) for name, mixer in mixers.items()}
    for name, m in made.items():
        found, wanted = torch.einsum("bhcij,bhjc->bhic", m, v), mixers[name](v)
        yield claim(
            "Each mixer's explicit M",
            f"relative difference of M V, {name}",
            gap(found, wanted) / float(wanted.abs().max()),
        ).within(1e-5, "the layer", because=FLOAT32)
    m = made["a convolution"]
    yield claim(
        "convolution's M",
        "change along a diagonal, convolution",
        gap(m[..., 1:, 1:], m[..., :-1, :-1]),
    ).equals(0.0, "none: it is Toeplitz")
    other = mixing_matrix(fourier, torch.randn(1, 2, 40, 8))
    yield claim(
        "convolution's M",
        "change of M with the values, Fourier",
        gap(made["a Fourier transform"], other),
    ).equals(0.0, "none: it is fixed")
    moved = mixing_matrix(lambda v: attend(q.roll(1, 2), k, v), v)
    yield claim(
        "convolution's M", "change of M with the queries, attention", gap(made["attention"], moved)
    ).above(0, "none", plus=0.1, because="weights of random queries differ by more than a tenth")
