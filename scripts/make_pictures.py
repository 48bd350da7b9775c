"""Draw the pictures of the documents with `rule.draw`: python scripts/make_pictures.py."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from regard.core.rule import Rule
from regard.core.support import (
    Blocks,
    Causal,
    Dilated,
    Documents,
    Neighborhood,
    PrefixLM,
    SharedPrefix,
    Sinks,
    Support,
    Tiles,
    Window,
)

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


def chosen(tiles: int, share: float) -> Tiles:
    """A share of causal tiles at random, the diagonal always among them."""
    generator = torch.Generator().manual_seed(7)
    picked = torch.rand(1, 1, tiles, tiles, generator=generator) < share
    return Tiles(picked | torch.eye(tiles, dtype=torch.bool), 4)


DOCUMENTS = Documents([0] * 9 + [1] * 15 + [2] * 8)

# name -> (how it is written, support, positions)
RULES: dict[str, tuple[str, Support, int]] = {
    "causal": ("Causal()", Causal(), 32),
    "window": ("Causal() & Window(8)", Causal() & Window(8), 32),
    "sinks": ("Causal() & (Window(8) | Sinks(2))", Causal() & (Window(8) | Sinks(2)), 32),
    "dilated": ("Causal() & Window(24) & Dilated(3)", Causal() & Window(24) & Dilated(3), 32),
    "blocks": ("Causal() & Blocks(8, back=1)", Causal() & Blocks(8, back=1), 32),
    "documents": ("Causal() & Documents(ids)", Causal() & DOCUMENTS, 32),
    "prefix": ("PrefixLM(10)", PrefixLM(10), 32),
    "shared_prefix": ("SharedPrefix(10, (8, 14))", SharedPrefix(10, (8, 14)), 32),
    "neighborhood": ("Neighborhood((3, 3), (6, 6))", Neighborhood((3, 3), (6, 6)), 36),
    "tiles": ("Causal() & Tiles(chosen, 4)", Causal() & chosen(8, 0.3), 32),
}


def main() -> None:
    """Draw each rule alone, and a sheet of them all."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, (_, support, n) in RULES.items():
        print(Rule(support).draw(n, to=str(IMAGES / f"{name}.png")))
    print(sheet(IMAGES / "rules.png"))


def sheet(path: Path) -> Path:
    """Draw every rule side by side, titled by how it is written."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    colors = ListedColormap(["#f3f1ec", "#1f5f7a"])
    for axes, (written, support, n) in zip(figure.subplots(2, 5).flat, RULES.values(), strict=True):
        axes.imshow(support.matrix(n)[0, 0].numpy(), cmap=colors, interpolation="none")
        axes.set_title(written, fontsize=7.5, family="monospace")
        axes.set(xticks=[], yticks=[])
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main()
