"""Survey in two sweeps without atomics: rows first (lse, entropy), then columns (received, tiles).

The first keeps running sums for each block of queries. The second walks each block of keys down
its queries, and is left out where nothing asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.score.biases import Alibi, SoftCap
from regard.core.score.matches import DotMatch
from regard.core.weigh import Softmax
from regard.run.bands import band_of
from regard.run.executor import Answer, No, Yes
from regard.run.triton.availability import interpreting, why_not_here
from regard.run.triton.launch import COLUMNS, ROWS, least_power, of_size
from regard.run.triton.loops import LOG2_E
from regard.run.triton.survey_columns import columns_kernel
from regard.run.triton.survey_rows import rows_kernel

ANSWERS = ("lse", "entropy", "received", "tiles", "sinks")


def can_survey(call: Call, want: tuple[str, ...], tile: int) -> Answer:
    """Return whether the kernels answer `want` for a call, or why not."""
    reason = why_not_here(call.q.device)
    if reason:
        return No(reason)
    other = [w for w in want if w not in ANSWERS]
    if other:
        return No(f"the kernel does not give {other[0]!r}")
    if type(call.rule.weigh) is not Softmax or call.rule.weigh.has_sink:
        return No(f"weighs by {call.rule.weigh}, and the kernel only by softmax without a sink")
    if not isinstance(call.rule.score.match, DotMatch):
        return No(f"{call.rule.score.match} is not in the kernel")
    kinds = [type(s) for s in call.rule.score.steps]
    if kinds not in ([], [SoftCap], [Alibi], [Alibi, SoftCap]):
        return No(f"{call.rule.score} is not in the kernel")
    if band_of(call.rule.support) is None or call.placed:
        return No(f"{call.rule.support} is no band with sinks")
    if tile not in (16, 32, 64, 128):
        return No(f"tiles of {tile}, and the kernel makes 16, 32, 64 or 128")
    if call.q.dtype == torch.float64:
        return No("it sums in float32")
    return Yes("interpreted: right, and slow" if interpreting() else "")


def run_survey(call: Call, want: tuple[str, ...], tile: int) -> dict[str, Tensor]:
    """Run the first sweep, and the second where `want` needs it; everything in float32."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.q, call.k))
    band = band_of(call.rule.support)
    made = call.rule.score.match.prepare(q, k)
    assert band is not None
    assert made is not None
    b, h, n, m, d, device = call.b, call.h, call.n, call.m, call.d, q.device
    t_q, t_k = -(-n // tile), -(-m // tile)
    steps = {type(s): s for s in call.rule.score.steps}
    cap, alibi = steps.get(SoftCap), steps.get(Alibi)
    slopes = q  # nobody reads it
    if isinstance(alibi, Alibi):
        slopes = (alibi.slopes.to(device, torch.float32) * LOG2_E).expand(h).contiguous()
    like = torch.empty(0, dtype=torch.float32, device=device)
    lse, entropy, row_max = (like.new_empty(b, h, n) for _ in range(3))
    found = {"lse": lse, "entropy": entropy, "row_max": row_max}
    shared = {
        "D": d, "D_PAD": least_power(d), "CAPPED": cap is not None, "SLOPED": alibi is not None,
        "WIDE": interpreting(),
    }  # fmt: skip
    # Everything to the base 2: scale, cap and slopes come multiplied by log2(e).
    most = cap.cap * LOG2_E if isinstance(cap, SoftCap) else 1.0
    size = (made[2] * LOG2_E, most, n, m, h, h // call.g)
    where = (call.rule.offset, band.low, band.high, band.sinks)
    strides = (*q.stride()[:3], *k.stride()[:3])
    launch = of_size(ROWS, d, q.element_size())
    rows, cols = min(launch.rows, least_power(n)), min(launch.cols, least_power(m))
    if lse.numel():
        rows_kernel[(-(-n // rows), b * h)](
            q, k, slopes, lse, entropy, row_max, *size, *where, *strides,
            BLOCK_N=rows, BLOCK_M=cols, **shared,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    if not {"received", "tiles", "sinks"} & set(want):
        return found
    tiles = "tiles" in want
    received = like.new_empty(b, h, m)
    # Tiles that nothing meets are never visited.
    tile_sum, tile_max = (like.new_zeros((b, h, t_q, t_k) if tiles else (1,)) for _ in range(2))
    launch = of_size(COLUMNS, d, q.element_size())
    keys = max(tile, min(launch.rows, least_power(m)))
    if received.numel():
        columns_kernel[(-(-m // keys), b * h)](
            q, k, slopes, lse, received, tile_sum, tile_max, *size, *where, t_q, t_k, *strides,
            BLOCK_M=keys, TILE=tile, TILES=tiles, **shared,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    seen = band.seen(n, m, call.rule.offset, device).to(torch.float32).expand(b, h, m)
    found |= {"received": received, "seen": seen}
    return found | ({"tile_sum": tile_sum, "tile_max": tile_max} if tiles else {})
