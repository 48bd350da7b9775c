"""Kernels at the center give the values; reach is the kernel's; the span makes the kernel."""

from __future__ import annotations

import torch

from regard.layers.dynamic_convolution import SpanConvolution
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.linear_cost import flops_ratio, scene_of
from regard.papers.shared.measure import gap


@check("convbert")
def span_convolution() -> Claims:
    """Kernels at the center give the values; reach is the kernel's; the span makes the kernel."""
    layer, x = SpanConvolution(32, heads=4, kernel=5), torch.randn(1, 20, 32)
    scene = scene_of(x)
    with torch.no_grad():
        saved = layer.to_kernel.weight.clone()
        layer.to_kernel.weight.zero_()
        layer.to_kernel.bias.copy_(torch.tensor([0.0, 0.0, 200.0, 0.0, 0.0]).repeat(2))
        center = gap(layer.convolved(scene), layer.to_value(x))
        layer.to_kernel.weight.copy_(saved)
        layer.to_kernel.bias.zero_()
    y = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(layer.convolved(scene_of(y))[0, 10].sum(), y)
    reach = int((pull[0].abs().amax(-1) > 0).nonzero().sub(10).abs().max())
    word = x.clone()
    word[:, 15] = word[:, 4]  # the same word in another span
    made = layer.kernels(scene_of(word))
    spans = float((made[:, 15] - made[:, 4]).abs().max())
    dynamic = layer.to_kernel(layer.to_q(word))  # without the span: the word alone
    words = float((dynamic[:, 15] - dynamic[:, 4]).abs().max())
    causal = SpanConvolution(32, heads=4, kernel=5, causal=True)
    later = torch.cat((x[:, :12], torch.randn(1, 8, 32)), 1)
    leak = gap(causal(later)[:, :12], causal(x)[:, :12])
    yield claim("perturbing token s", "change before a changed token, causal", leak).within(
        1e-6, "none", because=FLOAT32
    )
    yield claim("Kernel logits", "difference from the values", center).within(
        1e-5, "C", because=FLOAT32
    )
    yield claim("perturbing token s", "farthest token with a gradient", reach).at_most(
        2, "(k - 1) / 2", because=CATALOGUE
    )
    yield claim("Same word in different", "difference of its kernels in two spans", spans).above(
        words,
        "the difference under plain dynamic convolution",
        plus=1e-3,
        because="far over float32's rounding of kernels that sum to 1",
    )
    yield claim(
        "Same word in different", "difference of its kernels under plain dynamic convolution", words
    ).within(1e-6, "none", because=FLOAT32)
    yield claim(
        "T-scaling", "operations of the convolution a token, 8 times the length", flops_ratio(layer)
    ).at_most(1, "at the shorter length", times=1.05, because="a term of n would make it 8 times")
