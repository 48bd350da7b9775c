"""A gate at the end is the sampler itself; behind a gate words and guidance have no say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.errors import need
from regard.models.diffusers import branches
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.policies.denoising import TGate
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


@check(
    "tgate",
    beyond="FID of trained models; caching self-attention as well",
    same="bits and calls are counted",
)
def tgate() -> Claims:
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
    yield claim("m=T reproduces", "equal bit for bit", bits).equals(True, "the original sampler")
    yield claim("after m, changing", "samples behind the gate are the same", no_say).equals(
        True, "for other words"
    )
    yield claim(
        "after m, changing",
        "gradient of words behind the gate",
        0.0 if slope is None else float(slope.abs().max()),
    ).equals(0.0, "none")
    yield claim("after m, changing", "samples before the gate are the model's", early).equals(
        True, "bit for bit"
    )
    yield claim("calls: 2m + (T-m)", "rows that pass the UNet", sum(counted[0])).equals(
        passes, "2 m + (T - m)"
    )
    yield claim(
        "calls: 2m + (T-m)", "rows of each cross-attention", str(sorted(counted[1]))
    ).equals(str([2 * gate]), "m for each branch")
    yield claim("calls: 2m + (T-m)", "cross-attention of dense", share).equals(
        gate / steps, "m / T"
    )
