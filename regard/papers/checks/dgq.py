"""A step set per prompt, with the start column apart, errs less than one step for all."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.policies.log_weights import group_quantized, log2_quantized


@check(
    "dgq",
    beyond=(
        "images of trained models, weights in 4 bits, and shifts for products; nothing is faster"
    ),
)
def dgq() -> Claims:
    """A step set per prompt, with the start column apart, errs less than one step for all."""

    def weights(peak: float) -> Tensor:
        """Of 76 words, whose largest weight is `peak`, and a start token that has the rest."""
        words = (3 * torch.randn(1, 4, 256, 76)).softmax(-1)
        words = words * peak / words.amax()
        words = words / words.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.cat((1 - words.sum(-1, keepdim=True), words), -1)

    prompts = {peak: weights(peak) for peak in (0.02, 0.4)}
    top = max(w.amax() for w in prompts.values())
    error: dict[tuple[str, int, float], float] = {}
    factor = 1.0
    for bits in (3, 4):
        most = 2**bits - 1
        for peak, w in prompts.items():
            made = {
                "linear": (w / top * most).round() / most * top,
                "log": log2_quantized(w, bits, None, top), "ours": log2_quantized(w, bits),
            }  # fmt: skip
            size = w[..., 1:].square().sum()
            for name, found in made.items():
                error[name, bits, peak] = float((found - w).square().sum() / size)
            inside = w[..., 1:] > w[..., 1:].amax() * 2.0**-most
            ratio = (made["ours"] / w)[..., 1:][inside]
            factor = max(factor, float(ratio.max()), 1 / float(ratio.min()))
    times = {
        (name, bits): sum(error[name, bits, p] for p in prompts)
        / sum(error["ours", bits, p] for p in prompts)
        for name in ("linear", "log") for bits in (3, 4)
    }  # fmt: skip
    x = torch.randn(2, 64, 32)
    x[..., [3, 17]] *= 40
    group = {g: float((group_quantized(x, 6, g) - x).square().mean()) for g in (1, 8)}
    yield claim(
        "For prompts with very", "error of one linear scale at 4 bits", times["linear", 4]
    ).above(1, "ours", times=3, because="several times: at least three")
    yield claim("For prompts with very", "error of one log scale at 4 bits", times["log", 4]).above(
        1, "ours", times=3, because="several times: at least three"
    )
    yield claim("For prompts with very", "error of one log scale at 3 bits", times["log", 3]).above(
        1, "ours", times=3, because="several times: at least three"
    )
    yield claim("every unclamped value", "largest factor", factor).at_most(
        2**0.5, "2^0.5", plus=1e-4, because="float32 logarithms"
    )
    yield claim("every unclamped value", "error of 6 bits in 8 groups", group[8]).below(
        group[1], "in one group"
    )
