"""Checks of rows over the steps of denoising: windows of the trained size, gates, few bits."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from regard.core.errors import need
from regard.models.diffusers import branches
from regard.papers.checks import Measured, check
from regard.papers.checks.measure import gap
from regard.papers.checks.policies_vision import chosen, on_grid, tiny_wan, wan_out
from regard.policies.denoising import TGate
from regard.policies.larger import FreeSwim
from regard.policies.log_weights import group_quantized, log2_quantized
from regard.policies.registry import policy
from regard.verbs import shrink

HALVES = ("unconditional", "conditional")


def tiny_unet() -> tuple[nn.Module, dict[str, Tensor]]:
    """A random UNet with cross-attention, and a batch of both branches."""
    diffusers = need("diffusers", "diffusers", "has the model")
    model: nn.Module = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()  # fmt: skip
    return model, {"sample": torch.randn(1, 4, 8, 8), "words": torch.randn(2, 5, 16)}


class Covering(FreeSwim):
    """Windows that cover all, run as windows all the same."""

    def kernel(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Take the whole grid."""
        return grid


@check("freeswim")
def freeswim() -> Measured:
    """Windows are of the trained size everywhere, and the branch beside costs what it is run."""
    sizes = []
    for grid, window in (((2, 12, 9), (4, 6)), ((1, 7, 16), (6, 5)), ((3, 5, 11), (9, 3))):
        run, _ = chosen(policy("freeswim", window=window), on_grid(grid))
        counts = run.rule.support.matrix(prod(grid)).sum(-1).unique().tolist()
        sides = [min(2 * (w // 2) + 1, s) for w, s in zip(window, grid[1:], strict=True)]
        sizes.append(counts == [grid[0] * prod(sides)])
    call = on_grid((2, 5, 7))
    same = chosen(policy("freeswim", window=(5, 7)), call)[0] is call
    ratio = chosen(policy("freeswim", window=(3, 3)), call)[0].q / call.q
    factor = abs(float(ratio.mean()) - (torch.tensor(18.0).log() / torch.tensor(9.0).log()) ** 0.5)
    model, inputs = tiny_wan()
    plain = wan_out(model, inputs)
    with shrink(model, Covering(window=(4, 6), every=1, ratio=1.0), check=False):
        override = gap(wan_out(model, inputs), plain)
    cost = {}
    for every in (1, 2, 4):
        with shrink(model, policy("freeswim", window=(2, 2), every=every), check=False) as shrunk:
            for time in (9, 8, 7, 6):
                wan_out(model, inputs, time)
            layers = shrunk.report().layers
        cost[every] = [
            sum(x.flops for x in layers if x.site.kind == kind)
            / sum(x.dense_flops for x in layers if x.site.kind == kind)
            for kind in ("self", "cross")
        ]
    share = 9 / 24  # 3 x 3 of 4 x 6 places
    right = all(
        abs(a - (1 / every + share)) < 1e-9 and abs(b - 1 / every) < 1e-9
        for every, (a, b) in cost.items()
    )
    return Measured(
        "every query meets 2 (h // 2) + 1 by 2 (w // 2) + 1 places of every frame, at the edges "
        "too; a window over the grid changes nothing; scores are scaled by sqrt(log 2L / log L); "
        "where both branches see the same, the override changes nothing (1e-5); with the branch at "
        "every k-th step self-attention costs 1/k + the window, and cross-attention 1/k, of dense",
        all(sizes) and same and float(factor) < 1e-5 and override < 1e-5 and right,
        {"override": override, **{f"self-attention, every {k}": a for k, (a, _) in cost.items()}},
        left_out="videos of a trained model beyond its size, and the upsampling before it",
    )  # fmt: skip


@check("tgate")
def tgate() -> Measured:
    """A gate at the end is the sampler itself; behind a gate words and guidance have no say."""
    model, given = tiny_unet()
    steps, gate = 6, 2
    rows: list[int] = []
    cross: dict[str, int] = {}
    first = model.get_submodule("conv_in")
    handles = [first.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))]
    for name, module in model.named_modules():
        if name.endswith("attn2"):
            handles.append(module.to_q.register_forward_hook(
                lambda _, x, __, name=name: cross.__setitem__(name, cross.get(name, 0) + len(x[0]))
            ))  # fmt: skip

    def sample(words: Tensor, late: Tensor | None = None, scale: float = 4.0) -> list[Tensor]:
        x, seen = given["sample"], []
        for step in range(steps):
            told = words if late is None or step < gate else late
            out = model(torch.cat([x, x]), torch.tensor(90 - 10 * step), told, return_dict=False)
            without, with_words = out[0].chunk(2)
            x = x - 0.1 * (without + scale * (with_words - without))
            seen.append(x)
        return seen

    words = given["words"]
    with torch.no_grad():
        plain = sample(words)
        with branches(*HALVES):
            with shrink(model, TGate(gate=steps), check=False):
                bits = all(torch.equal(a, b) for a, b in zip(sample(words), plain, strict=True))
            rows.clear()
            cross.clear()
            with shrink(model, TGate(gate=gate), check=False) as shrunk:
                gated = sample(words)
                counted = list(rows), set(cross.values())
                report = shrunk.report()
                other = sample(words, late=words + 3)
    no_say = all(torch.equal(a, b) for a, b in zip(gated, other, strict=True))
    early = all(torch.equal(a, b) for a, b in zip(gated[:gate], plain[:gate], strict=True))
    late = words.clone().requires_grad_()
    with branches(*HALVES), shrink(model, TGate(gate=gate), check=False):
        slope = torch.autograd.grad(sample(words, late)[-1].sum(), late, allow_unused=True)[0]
    for handle in handles:
        handle.remove()
    passes = 2 * gate + (steps - gate)
    layers = [x for x in report.layers if x.site.kind == "cross"]
    share = sum(x.flops for x in layers) / sum(x.dense_flops for x in layers)
    return Measured(
        "a gate at the last step gives the samples of the model bit for bit; behind a gate at m of "
        "T other words change nothing and have no gradient; 2 m + (T - m) rows pass the UNet, and "
        "each cross-attention, projections and all, is run m times for each branch",
        bits and no_say and early and (slope is None or not bool(slope.any()))
        and sum(counted[0]) == passes and counted[1] == {2 * gate} and share == gate / steps,
        {"rows of the UNet": sum(counted[0]), "rows without a gate": 2 * steps,
         "rows of each cross-attention": str(counted[1]), "cross-attention of dense": share,
         "distance of the last sample": float((gated[-1] - plain[-1]).norm() / plain[-1].norm())},
        left_out="FID of trained models; caching self-attention as well",
    )  # fmt: skip


@check("dgq")
def dgq() -> Measured:
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
    low = error["log", 4, 0.02] / error["ours", 4, 0.02]
    return Measured(
        "for prompts whose words peak at 0.02 and at 0.4, a step set when it is run and the start "
        "column apart err, in the mean over both and relative to the weights of words, more than 3 "
        "times less than one linear scale at 4 bits, and than one linear or one log scale at 3 "
        "bits; what is not clamped is kept within a factor of the root of 2; 8 groups by size err "
        "less than one scale where two channels stick out",
        times["linear", 4] > 3 and times["linear", 3] > 3 and times["log", 3] > 3
        and factor <= 2**0.5 + 1e-4 and group[8] < group[1],
        {**{f"one {name} scale, {bits} bits, times ours": x for (name, bits), x in times.items()},
         "one log scale, 4 bits, peak 0.02, times ours": low,
         "one linear scale, 4 bits, peak 0.4, times ours":
         error["linear", 4, 0.4] / error["ours", 4, 0.4],
         "largest factor": factor, "6 bits, one scale": group[1], "6 bits, 8 groups": group[8]},
        left_out="what the row says of 4 bits against one log scale holds only in the mean here: "
        "its 16 octaves reach a peak of 0.02 as they are, and all it loses is the start column; "
        "images of trained models, weights in 4 bits, and shifts for products; nothing is faster",
    )  # fmt: skip
