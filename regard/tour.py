"""A tour of what there is, on random tensors, in a few seconds: `python -m regard.tour`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import regard
from regard.core.picture_files import write_figure


def tour(out: Path) -> list[Path]:
    """Attend with a composed rule, print the plan, draw the rule and a survey; give the files."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    n, h, g, d = 4096, 8, 2, 64
    q, k, v = torch.randn(1, h, n, d), torch.randn(1, g, n, d), torch.randn(1, g, n, d)

    say("1. A rule says what an attention does, apart from any tensor.")
    rule = regard.Rule(regard.Causal() & (regard.Window(256) | regard.Sinks(4)))
    print(f"\n{rule}\n\nits first 12 positions, with a window of 4 and 2 sinks:\n")
    small = regard.Rule(regard.Causal() & (regard.Window(4) | regard.Sinks(2)))
    print(indented(small.draw(12)))

    say("2. The plan says how it will run, and what was ruled out.")
    print(indented(str(regard.plan(q, k, v, rule))))
    dense = timed("every pair of the past", lambda: regard.attend(q, k, v, regard.Causal()))
    sparse = timed("the rule", lambda: regard.attend(q, k, v, rule))
    print(f"  {dense / sparse:.1f} times faster, and no matrix of {n:,} x {n:,} exists")

    say("3. Attention over parts of the keys merges into attention over all of them.")
    near, far = regard.Window(256), ~regard.Window(256)
    parts = [regard.partial(q, k, v, regard.Causal() & some) for some in (near, far)]
    whole = regard.attend(q, k, v, regard.Causal())
    error = (regard.merge(*parts).out - whole).abs().max()
    print(f"  near keys merged with far keys equal all keys to {error:.0e}")

    say("4. A survey reports on the whole matrix without making it.")
    # Give every query something that only key 0 has: an attention sink.
    towards = torch.nn.functional.normalize(torch.randn(d), dim=0)
    k = torch.where((torch.arange(n) == 0)[:, None], 10 * towards, k)
    q = q + 8 * towards * torch.linspace(0, 1, h)[:, None, None]
    start = time.perf_counter()
    report = regard.survey(q, k, v, regard.Causal(), want=("entropy", "received", "tiles"))
    took = time.perf_counter() - start
    print(f"  entropy, received mass and tile map of {h} heads in {took:.2f} s")
    print("  mean entropy by head, in nats: ", numbers(report.entropy.mean((0, 2))))
    print("  share of all mass on key 0:    ", numbers(report.received[0, :, 0] / n))
    return pictures(out, rule, report)


def pictures(out: Path, rule: regard.Rule, report: regard.Survey) -> list[Path]:
    """Draw the rule and the tile map of head 0, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nno pictures: pip install 'regard[see]'")
        return []
    mask, tiles = out / "rule.png", out / "survey.png"
    rule.draw(1024, to=str(mask))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    last = report.tile_max.shape[1] - 1
    for axes, head in zip(panels, (0, last), strict=True):
        largest = report.tile_max[0, head].log10().clamp(min=-5).numpy()
        shown = axes.imshow(largest, cmap="viridis", vmin=-5, vmax=0)
        axes.set_title(f"head {head}: largest weight in each tile (log10)", fontsize=9)
        axes.set_xlabel("tiles of keys")
    panels[0].set_ylabel("tiles of queries")
    figure.colorbar(shown, ax=panels)
    write_figure(figure, tiles, origin="tour", dpi=160, bbox_inches="tight")
    print(f"\nwritten: {mask}, {tiles}")
    return [mask, tiles]


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n{heading}\n" + "-" * len(heading))


def indented(text: str) -> str:
    """Indent every line."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def timed(what: str, call: Callable[[], Tensor]) -> float:
    """Time the second of two calls, and say so."""
    call()
    start = time.perf_counter()
    call()
    took = time.perf_counter() - start
    print(f"  {what}: {1e3 * took:.0f} ms")
    return took


def numbers(x: Tensor) -> str:
    """Print a few numbers."""
    return " ".join(f"{y:.3f}" for y in x.tolist())


if __name__ == "__main__":
    tour(Path(sys.argv[1] if len(sys.argv) > 1 else "out/tour"))
