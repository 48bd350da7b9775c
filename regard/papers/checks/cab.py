"""Layers are causal where they say so, others are refused, and the index is what CAB says."""

from __future__ import annotations

import torch

from regard.bench.specs import make_layer, need_pattern, why_not
from regard.bench.statistics import compositional_index, efficiency_length
from regard.core.errors import CapabilityError
from regard.layers.registry import get, names
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.seeding import restart
from regard.tasks import PATTERNS

TOKENS = 24


# Whose tokens never meet, as they say themselves: gates on the features of each.
ALONE = ("gaam",)


def _leaks(name: str, pattern: str) -> float:
    """The largest gradient of any output to what its query may not see, over one that it may."""
    kind = get(name)
    dim, heads = int(kind.tiny["dim"]), int(kind.tiny.get("heads", 4))
    layer = make_layer(name, pattern, dim, heads, TOKENS).eval()
    x = torch.randn(1, TOKENS, dim)
    other = torch.randn(1, TOKENS, dim)
    seen = (other if pattern in ("nc", "cc") else x).requires_grad_()
    y = layer(x, seen) if pattern in ("nc", "cc") else layer(seen)
    ahead, largest = 0.0, 1e-30
    for place in range(TOKENS - 1):
        (gradient,) = torch.autograd.grad(
            y[0, place].square().sum(), seen, allow_unused=True, retain_graph=True
        )
        if gradient is not None:
            size = gradient[0].abs().amax(-1)
            ahead = max(ahead, float(size[place + 1 :].max()))
            largest = max(largest, float(size.max()))
    return ahead / largest


@check(
    "cab",
    beyond="the seven tasks on real data and their eight backbones",
    same="metrics are given, and gradients are zero or not whatever is drawn",
)
def patterns() -> Claims:
    """Layers are causal where they say so, others are refused, and the index is what CAB says."""
    scores = {"a": {"x": [1.0, 5.0], "y": [2.0, 1.0], "z": [4.0, 0.0]},
              "b": {"x": [3.0], "y": [1.0], "z": [0.5]}}  # fmt: skip
    index = compositional_index(scores)
    moved = {t: {n: [10 * v + 7 for v in values] for n, values in by.items()}
             for t, by in scores.items()}  # fmt: skip
    unchanged = max(abs(index[n] - x) for n, x in compositional_index(moved).items())
    able: dict[str, list[str]] = {p: [] for p in PATTERNS}
    leaking, blind, let_in = [], [], []
    for name in names():
        for pattern in PATTERNS:
            if why_not(get(name), pattern) is not None:
                try:
                    need_pattern(name, pattern)
                    let_in.append((name, pattern))
                except CapabilityError:
                    pass
                continue
            able[pattern].append(name)
            restart()
            leak = _leaks(name, pattern)
            if pattern in ("cs", "cc") and leak > 0:
                leaking.append(f"{name} ({pattern})")
            if pattern == "ns" and leak == 0 and name not in ALONE:
                blind.append(f"{name} ({pattern})")
    crossing = efficiency_length([1, 2, 4, 8], [10, 20, 40, 80], [1, 4, 16, 64])
    yield claim("CI: z-scores", "mean of indices", sum(index.values()) / 3).within(
        1e-6, "0", because=FLOAT64
    )
    yield claim("CI: z-scores", "change by shifted and scaled metrics", unchanged).within(
        1e-6, "none", because=FLOAT64
    )
    yield claim("CI: z-scores", "length from which 10n pays against n^2", crossing).equals(10, "10")
    yield claim(
        "vanilla attention passes",
        "patterns that multi-head attention can",
        sum("mha" in able[p] for p in PATTERNS),
    ).equals(4, "all")
    yield claim(
        "vanilla attention passes",
        "causal layers with a gradient to later inputs",
        ", ".join(leaking) or "none",
    ).equals("none", "none")
    yield claim(
        "vanilla attention passes",
        "layers that claim to look ahead and do not",
        ", ".join(blind) or "none",
    ).equals("none", "none, but gaam, whose tokens never mix")
    yield claim(
        "vanilla attention passes", "patterns that are not claimed and yet let in", len(let_in)
    ).equals(0, "none")
