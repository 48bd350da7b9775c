"""Operations on latents: warp, extend and blend; and a distance between sets of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from regard.core.errors import ShapeError, ValueRangeError, fail, shape_of
from regard.core.method import method


@method("latent_warp")
def warp_latent(before: Tensor, latent: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
    """Return a latent [c, h, w], replaced by the previous frame moved along the flow where valid.

    `flow` [2, h, w] is the offset to the source of each place in the previous frame (rows, columns,
    in latent cells), `valid` bool [h, w] where it is reliable. The nearest cell is used, since
    averages of cells have less noise than cells.

    >>> x = torch.arange(6.0).view(1, 2, 3)
    >>> still = torch.zeros(2, 2, 3)
    >>> torch.equal(warp_latent(x, 0 * x, still, torch.ones(2, 3).bool()), x)
    True
    """
    c, h, w = latent.shape
    if before.shape != latent.shape or flow.shape != (2, h, w) or valid.shape != (h, w):
        fail(
            ShapeError, "flow", f"{shape_of(before)}, {shape_of(flow)} and {shape_of(valid)}",
            f"latents [{c}, {h}, {w}], flow [2, {h}, {w}], valid [{h}, {w}]",
            "resize the flow to the grid of the latent, in its cells",
        )  # fmt: skip
    rows, columns = torch.meshgrid(
        torch.arange(h, device=latent.device), torch.arange(w, device=latent.device), indexing="ij"
    )
    y, x = rows + flow[0], columns + flow[1]
    place = torch.stack(
        (2 * x / max(w - 1, 1) - (w > 1) * 1.0, 2 * y / max(h - 1, 1) - (h > 1) * 1.0), -1
    )
    moved = grid_sample(
        before[None].float(), place[None].float(), "nearest", "border", align_corners=True
    )[0]
    return torch.where(valid[None], moved.to(latent), latent)


@method("ouroboros_diffusion")
def tail_latent(latent: Tensor, noise: Tensor, cutoff: float = 0.25) -> Tensor:
    """Return noise [..., h, w] with the low frequencies of a latent: a matching new frame.

    Below `cutoff` (a share of the highest frequency of each axis) it is the latent, above it the
    noise. 1 returns the latent, 0 the noise.

    >>> x, noise = torch.randn(2, 1, 4, 6)
    >>> torch.equal(tail_latent(x, noise, 0.0), noise)
    True
    """
    if latent.shape != noise.shape or latent.dim() < 2:
        fail(
            ShapeError, "noise", shape_of(noise), f"{shape_of(latent)}, as the latent", "draw it so"
        )
    if not 0 <= cutoff <= 1:
        fail(ValueRangeError, "cutoff", cutoff, "0 to 1", "pass 0.25")
    if cutoff == 0:
        return noise
    rows, columns = (
        torch.fft.fftfreq(n, device=latent.device).abs() * 2 for n in latent.shape[-2:]
    )
    low = (rows[:, None] <= cutoff) & (columns <= cutoff)
    a, b = (torch.fft.fft2(x.float()) for x in (latent, noise))
    return torch.fft.ifft2(torch.where(low, a, b)).real.to(noise)


@method("ditctrl")
def blend_segments(segments: list[Tensor], overlap: int) -> Tensor:
    """Return one video [c, frames, h, w] from segments that overlap by `overlap` frames.

    Where two overlap, the weight of each falls toward its ends (a triangle), and weights are
    normalized.

    >>> one, two = torch.ones(1, 4, 1, 1), 3 * torch.ones(1, 4, 1, 1)
    >>> blend_segments([one, two], 2).flatten().tolist()
    [1.0, 1.0, 1.5, 2.5, 3.0, 3.0]
    """
    if not segments or any(x.dim() != 4 or x.shape != segments[0].shape for x in segments):
        fail(
            ShapeError, "segments", [shape_of(x) for x in segments], "segments [c, frames, h, w] "
            "of one shape", "pass one or more",
        )  # fmt: skip
    frames = segments[0].shape[1]
    if isinstance(overlap, bool) or not 0 <= overlap < frames:
        fail(ValueRangeError, "overlap", overlap, f"0 to {frames - 1} frames", "pass fewer")
    step = frames - overlap
    whole = frames + step * (len(segments) - 1)
    c, _, h, w = segments[0].shape
    total = segments[0].new_zeros(c, whole, h, w)
    weights = segments[0].new_zeros(1, whole, 1, 1)
    line = (torch.arange(frames, device=total.device) + 0.5) * 2 / frames
    triangle = torch.minimum(line, 2 - line).to(total).view(1, -1, 1, 1)
    for number, segment in enumerate(segments):
        at = slice(number * step, number * step + frames)
        total[:, at] += triangle * segment
        weights[:, at] += triangle
    return total / weights


@method("style_nerf2nerf")
def sliced_wasserstein(
    a: Tensor, b: Tensor, directions: int = 64, generator: torch.Generator | None = None
) -> Tensor:
    """Return the sliced Wasserstein distance of two sets of features [n, d].

    >>> x = torch.randn(5, 3)
    >>> float(sliced_wasserstein(x, x.flip(0))) < 1e-12
    True
    """
    if a.dim() != 2 or a.shape != b.shape:
        fail(
            ShapeError, "features", f"{shape_of(a)} and {shape_of(b)}", "two sets [n, d] of one "
            "size", "sample as many of both",
        )  # fmt: skip
    way = torch.randn(a.shape[1], directions, generator=generator).to(a)
    way = way / way.norm(dim=0)
    found: Tensor = ((a @ way).sort(0).values - (b @ way).sort(0).values).square().mean()
    return found
