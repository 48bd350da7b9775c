"""Draw what a plan says of many devices: docs/images/spread-plan.png.

Left, ten million tokens over 8 to 1,024 devices in nodes of 8: the share of the ideal of each
scheme's best layout, simulated. Right, rings on 8 H800: simulated beside what was published.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from regard.core.rule import Rule  # noqa: E402
from regard.core.support import Causal, Support, Window  # noqa: E402
from regard.schemes.simulation import Machine, simulate  # noqa: E402

DEVICES, TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024), 10_000_000
RULES: dict[str, Support] = {"causal": Causal(), "window 65,536": Causal() & Window(65_536)}
SCHEMES = ("ring", "gather", "heads")
# zhuzilin/ring-flash-attention, forward, and both ways (tests/schemes/test_published.py).
H800 = Machine(8, link=200.0, flops=325.0, memory=3350.0)
PUBLISHED = {"contiguous": (52.1, 53.9), "zigzag": (85.2, 90.2), "striped": (74.4, 82.9)}


def shares(support: Support) -> dict[str, list[float]]:
    """Percent of the ideal of each scheme at its best layout, by the number of devices."""
    found: dict[str, list[float]] = {name: [] for name in SCHEMES}
    for devices in DEVICES:
        costs = simulate(Rule(support), TOKENS, Machine(devices, devices // 8))
        for name in SCHEMES:
            found[name].append(100 * max(x.ideal for x in costs if x.scheme == name))
    return found


def main() -> None:
    """Draw both."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (title, support), style in zip(RULES.items(), ("-", "--"), strict=True):
        for color, (name, line) in zip(("C0", "C1", "C2"), shares(support).items(), strict=True):
            left.plot(DEVICES, line, style, color=color, marker="o", label=f"{name}, {title}")
    left.set_xscale("log", base=2)
    left.set_xticks(DEVICES, [f"{x:,}" for x in DEVICES])
    left.set(xlabel="devices, in nodes of 8", ylabel="% of the ideal", ylim=(0, 105))
    left.set_title("10 million tokens, one layer's forward, simulated")
    left.legend(fontsize=7)
    for place, backward in enumerate((False, True)):
        costs = simulate(Rule(Causal()), 8 * 8192, H800, backward=backward)
        for group, (layout, said) in enumerate(PUBLISHED.items()):
            ours = next(x.ideal for x in costs if (x.scheme, x.layout) == ("ring", layout))
            at = group + 0.4 * place
            right.bar(at - 0.1, 100 * ours, 0.17, color="C0")
            right.bar(at + 0.08, said[place], 0.17, color="C7")
    right.set_xticks([x + 0.2 for x in range(3)], list(PUBLISHED))
    right.set(ylabel="% of the ideal", ylim=(0, 105))
    right.set_title(
        "ring on 8 H800: simulated (blue), published (gray)\nforward; both ways", size=9
    )
    path = ROOT / "docs" / "images" / "spread-plan.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
