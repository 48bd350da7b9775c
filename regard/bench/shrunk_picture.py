"""Quality of shrunk models against what they keep, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regard.bench.shrunk_cells import COUNTS, Cell, frontier, level
from regard.core.errors import need
from regard.core.picture_files import write_figure
from regard.views.colors import ROLE_COLORS

TITLES = {"needle": "share of needles found", "recall": "share of keys recalled, asked for later",
          "bits": "bits per byte"}  # fmt: skip
# Told apart in print as well, where colors are not.
MARKS = "osD^vP*X<>hd"


def picture(cells: Sequence[Cell], path: Path, origin: str, *, overwrite: bool = False) -> Path:
    """Draw quality against memory (or FLOPs, for policies that keep all), one line a policy.

    A picture of the same `origin` that is there is replaced, another only with `overwrite`.
    """
    need("matplotlib", "see", "draws curves")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    full = next((c for c in cells if c.policy == "full"), None)
    cells = [c for c in cells if not c.refused]
    shown = [m for m in TITLES if any(getattr(c, m) is not None for c in cells)]
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 4.2), squeeze=False)
    names = list(dict.fromkeys(c.policy for c in cells if c.policy != "full"))
    for axis, measured in zip(axes[0], shown, strict=True):
        for i, name in enumerate(names):
            own = sorted((c for c in cells if c.policy == name), key=lambda c: c.bytes or 0)
            saves = min((c.bytes or 1.0) for c in own) < 0.97
            xs = [c.bytes if saves else c.flops for c in own]
            ys = [level(c, measured) for c in own]
            color, mark = ROLE_COLORS[i % len(ROLE_COLORS)], MARKS[i % len(MARKS)]
            style = "-" if saves else "--"
            if measured in COUNTS:  # whiskers are the 95% interval of the count
                counts = [getattr(c, measured) for c in own]
                low = [c.share - c.interval[0] for c in counts]
                high = [c.interval[1] - c.share for c in counts]
                axis.errorbar(xs, ys, yerr=(low, high), fmt="none", lw=0.6, alpha=0.5,
                              color=color)  # fmt: skip
            axis.plot(xs, ys, style, marker=mark, ms=4.5, lw=1.2, color=color, label=name)
        edge = frontier([c for c in cells if (c.bytes or 1.0) < 0.97], measured)
        axis.step([c.bytes for c in edge], [level(c, measured) for c in edge], where="post",
                  color="black", lw=0.9, alpha=0.6, label="none other beats")  # fmt: skip
        if full is not None and getattr(full, measured) is not None:
            axis.axhline(level(full, measured), color="black", lw=0.8, ls=":")
        if not names:  # all were refused: there is no range to take a logarithm of
            axis.set_xlim(0.04, 1.1)
        axis.set_xscale("log")
        axis.set_xticks([0.05, 0.1, 0.25, 0.5, 1.0], ["5%", "10%", "25%", "50%", "100%"])
        axis.set_title(TITLES[measured], fontsize=10)
        axis.set_xlabel("bytes kept of full (dashed: FLOPs of full)", fontsize=8)
        axis.grid(alpha=0.25)
    axes[0][-1].legend(fontsize=6.5, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    plt.close(figure)
    return write_figure(figure, path, origin=origin, overwrite=overwrite, dpi=130)
