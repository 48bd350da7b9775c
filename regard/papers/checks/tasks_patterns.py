"""The check of the row that asks of every layer which of the four patterns it can look in."""

from __future__ import annotations

import torch

from regard.bench.specs import make_layer, need_pattern, why_not
from regard.bench.statistics import compositional_index, efficiency_length
from regard.core.errors import CapabilityError
from regard.layers.registry import get, names
from regard.papers.checks import Measured, check
from regard.tasks import PATTERNS

TOKENS = 24
# Whose tokens never meet, as they say themselves: gates on the features of each.
ALONE = ("gaam",)


def _leaks(name: str, pattern: str) -> float:
    """The largest gradient of an output to what its query may not see, over one that it may."""
    kind = get(name)
    dim, heads = int(kind.tiny["dim"]), int(kind.tiny.get("heads", 4))
    layer = make_layer(name, pattern, dim, heads, TOKENS).eval()
    x = torch.randn(1, TOKENS, dim)
    other = torch.randn(1, TOKENS, dim)
    seen = (other if pattern in ("nc", "cc") else x).requires_grad_()
    y = layer(x, seen) if pattern in ("nc", "cc") else layer(seen)
    place = TOKENS // 2
    (gradient,) = torch.autograd.grad(y[0, place].square().sum(), seen, allow_unused=True)
    if gradient is None:
        return 0.0
    size = gradient[0].abs().amax(-1)
    return float(size[place + 1 :].max() / size.max().clamp_min(1e-30))


@check("cab")
def patterns() -> Measured:
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
            torch.manual_seed(0)
            leak = _leaks(name, pattern)
            if pattern in ("cs", "cc") and leak > 0:
                leaking.append(f"{name} ({pattern})")
            if pattern == "ns" and leak == 0 and name not in ALONE:
                blind.append(f"{name} ({pattern})")
    crossing = efficiency_length([1, 2, 4, 8], [10, 20, 40, 80], [1, 4, 16, 64])
    return Measured(
        "multi-head attention looks in all four patterns; of all layers, in every pattern that "
        "they "
        "claim, causal ones have a gradient of exactly zero to later inputs, looking ahead is "
        "possible where it is claimed (but for gaam, whose tokens never meet), and every other "
        "pattern is refused; indices average to 0, "
        "and do not change when metrics are shifted and scaled; 10n pays against n² from 10",
        all("mha" in able[p] for p in PATTERNS) and not leaking and not blind and not let_in
        and abs(sum(index.values())) < 1e-6 and unchanged < 1e-6 and crossing == 10,
        {**{f"layers, {PATTERNS[p]}": len(found) for p, found in able.items()},
         "leaking": ", ".join(leaking) or "none", "do not look ahead": ", ".join(blind) or "none",
         "mean of indices": sum(index.values()) / 3, "index moved by units": unchanged},
        left_out="the seven tasks on real data and their eight backbones: toys of each pattern "
        "stand for them",
    )  # fmt: skip
