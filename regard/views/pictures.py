"""Pictures of runs, for papers and for those without a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regard.core.errors import need
from regard.core.picture_files import write_figure
from regard.views.colors import role_color
from regard.views.run_file import Run


def draw_heads(run: Run, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw all heads: a row for each layer, hue the role, size the importance.

    A picture of the same model and inputs that is there is replaced, anything else only where
    `overwrite` is true.
    """
    need("matplotlib", "see", "draws pictures")
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    role, sizes = run.arrays["role"], run.arrays["importance"]
    colors = [role_color(spec["name"]) for spec in run.manifest["roles"]]
    rows, columns = role.shape
    figure = Figure(figsize=(1.6 + 0.42 * columns, 1.5 + 0.42 * rows), layout="constrained")
    axes = figure.add_subplot()
    for s in range(rows):
        for h in range(int(run.manifest["sites"][s]["heads"] or 0)):
            color = colors[role[s, h]] if role[s, h] >= 0 else "none"
            share = float(np.nan_to_num(sizes[s, h]))
            axes.scatter(
                h, s, s=30 + 330 * share, color=color,
                edgecolors="#777777" if color == "none" else color,
            )  # fmt: skip
    axes.set(xlabel="head", xticks=range(columns), yticks=range(rows))
    axes.set_yticklabels([f"L{x['layer']}" for x in run.manifest["sites"]])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    marks = [
        Line2D([], [], marker="o", linestyle="", color=colors[i],
               label=spec["title"])
        for i, spec in enumerate(run.manifest["roles"]) if (role == i).any()
    ]  # fmt: skip
    if marks:
        axes.legend(handles=marks, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_title(run.manifest.get("title", ""), fontsize=10)
    return write_figure(figure, path, origin=run.origin, overwrite=overwrite, dpi=150)
