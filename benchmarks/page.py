"""Size and speed of the page: 2,048 and 32,768 tokens, all of 32 x 32 heads, words over an image.

    pip install playwright
    python benchmarks/page.py --save page-chromium      # with chromium on the path
    python benchmarks/page.py --hold                    # an error where a budget is broken

`ready` is the time from opening to the first drawn view (of the head, where one is named in the
address), `tile` that of 256 x 256 exact weights (the median of nine), both measured in the page;
of three openings the middle one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import save

from regard.models.site import Site
from regard.probes.regions import WordMaps
from regard.views.page import page
from regard.views.page_weight import budget
from regard.views.run_file import Run
from regard.views.word_maps import packed_words

REPORT = """
const found = { ready: globalThis.READY, nodes: document.querySelectorAll("*").length };
found.requests = performance.getEntriesByType("resource").length;
const took = [];
if (manifest.deep.length && location.hash) {
  const { n, m } = regard.now, row = Math.min(20000, n - 256);
  for (let i = 0; i < 9; i++) {
    const began = performance.now();
    regard.exactTile(row, Math.min(18000 + 100 * i, m - 256), 256, 256);
    took.push(performance.now() - began);
  }
}
found.tile = took.sort((a, b) => a - b)[4];
const place = document.createElement("pre");
place.id = "found";
place.textContent = JSON.stringify(found);
document.body.append(place);
"""


def run(layers: int, heads: int, tokens: int, dim: int, thumb: int, keep: bool) -> Run:
    """A run of random heads."""
    rng = np.random.default_rng(0)
    site = {
        "kind": "self", "heads": heads, "kv_heads": heads, "head_size": dim, "causal": True,
        "queries": tokens, "keys": tokens, "grid": None, "patches": None, "rule": "",
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {
        "scores/entropy": rng.random((layers, heads), dtype=np.float32),
        "role": rng.integers(-1, 4, (layers, heads)).astype(np.int8),
        "importance": rng.random((layers, heads), dtype=np.float32),
        "thumbs": rng.integers(90, 140, (layers, heads, thumb, thumb)).astype(np.uint8),
    }
    deep: list[dict[str, Any]] = []
    if keep:
        q, k = (rng.standard_normal((tokens, dim)).astype(np.float16) for _ in range(2))
        tile = tokens // 256
        arrays |= {
            "q/0": q, "k/0.0": k, "lse/0": np.full(tokens, 10, np.float32),
            "map/0": rng.integers(0, 255, (256, 256)).astype(np.uint8),
            "entropy/0": rng.random((heads, tokens)).astype(np.float16),
            "received/0": rng.random((heads, tokens)).astype(np.float16),
        }  # fmt: skip
        deep = [{"site": 0, "head": 0, "kv_head": 0, "scale": dim**-0.5, "causal": True,
                 "offset": 0, "softcap": None, "exact": True, "tile": tile}]  # fmt: skip
    manifest = {
        "title": "a page to be timed", "model": {"name": "random"},
        "tokens": [f" w{i % 999}" for i in range(tokens)] if keep else [],
        "sites": [{"layer": i, "module": f"layers.{i}", **site} for i in range(layers)],
        "scores": {"entropy": {"title": "entropy", "definition": "", "low": 0, "high": 1}},
        "roles": [{"name": str(i), "title": f"role {i}", "threshold": 0.5} for i in range(4)],
        "findings": [], "deep": deep,
    }  # fmt: skip
    return Run(manifest, arrays)


def words(tokens: int, steps: int) -> Run:
    """A run of random word maps, at the grids of a UNet that makes 512 x 768 pixels."""
    made = run(1, 8, 64, 8, 48, False)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for step in range(steps):
        for layer, size in enumerate((1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1)):
            site = Site(layer, "cross", f"blocks.{layer}.attn2", 8, 8)
            shape = (tokens, 64 // size, 96 // size)
            found[step, site] = torch.rand(shape, generator=generator).softmax(0)
    maps = WordMaps(tuple(f"word{t}" for t in range(tokens)), found, "conditional")
    made.manifest["words"], arrays = packed_words(maps)
    made.arrays |= arrays
    return made


def talks(tokens: int, kept: int = 5, asked: bool = False) -> Run:
    """A run of random heads of the shape of SmolLM2-135M, as many kept in full as see() keeps."""
    made, rng = run(30, 9, tokens, 64, 48, False), np.random.default_rng(1)
    for layer in range(30):
        for margin in ("entropy", "received"):
            made.arrays[f"{margin}/{layer}"] = rng.random((9, tokens)).astype(np.float16)
    side = -(-tokens // 13)
    for number in range(kept):
        q, k = (rng.standard_normal((tokens, 64)).astype(np.float16) for _ in range(2))
        made.arrays |= {
            f"q/{number}": q, f"k/{number}.0": k, f"lse/{number}": np.full(tokens, 9, np.float32),
            f"map/{number}": np.tril(rng.integers(0, 255, (side, side))).astype(np.uint8),
        }  # fmt: skip
        made.manifest["deep"].append({
            "site": number, "head": 0, "kv_head": 0, "scale": 0.125, "causal": True, "offset": 0,
            "softcap": None, "exact": True, "tile": 13, "telling": kept - 1 - number,
        })  # fmt: skip
    return Run({**made.manifest, "tokens": [f" w{i % 999}" for i in range(tokens)],
                "asked": asked}, made.arrays)  # fmt: skip


def shown(tokens: int) -> Run:
    """The model that ships reads a text of so many tokens."""
    import regard
    from regard.models.loading import load
    from regard.verbs import default_text

    model, tokenizer = load()
    ids = tokenizer(default_text(20000))["input_ids"][:tokens]
    return regard.see(model, torch.tensor([ids]), tokenizer=tokenizer).run()


# The pages that are measured, each with the part of its address that opens it.
PAGES = {
    "the model that ships, 2,048 tokens": (lambda: shown(2048), "#head=3.5"),
    "one head of 32,768 tokens, d 128": (lambda: run(1, 1, 32768, 128, 48, True), "#head=0.0"),
    "overview of 32 x 32 heads": (lambda: run(32, 32, 4096, 128, 48, False), ""),
    "270 heads, 3,138 tokens, d 64": (lambda: talks(3138), "#head=4.0"),
    "12 words, 16 layers, 50 steps, 64 x 96 patches": (lambda: words(12, 50), ""),
}
# Megabytes and milliseconds that a page may take, and milliseconds of an exact tile.
BUDGETS = {
    "the model that ships, 2,048 tokens": (3, 1500, 30),
    "one head of 32,768 tokens, d 128": (25, 4000, 30),
    "overview of 32 x 32 heads": (3, 1500, 30),
    "270 heads, 3,138 tokens, d 64": (budget(3138) / 1e6, 1578, 30),
    "12 words, 16 layers, 50 steps, 64 x 96 patches": (12, 1500, 30),
}


def broken(row: dict[str, Any]) -> list[str]:
    """Which budgets a page breaks."""
    kinds = ("megabytes", "ready, ms", "256 x 256 exact weights, ms")
    return [
        f"{kind} {row[kind]}, more than {most}"
        for kind, most in zip(kinds, BUDGETS[row["page"]], strict=True)
        if row[kind] is not None and row[kind] > most
    ]


def found_browser() -> str | None:
    """Where chromium is."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def opened(made: Run, address: str) -> dict[str, Any]:
    """Open the page in a browser, and give what it measured."""
    from playwright.sync_api import sync_playwright

    told, said = list[str](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        path = Path(folder) / "page.html"
        path.write_text(page(made, REPORT), encoding="utf-8")
        window = tools.chromium.launch(executable_path=found_browser(), args=["--no-sandbox"])
        for _ in range(3):
            tab = window.new_page(viewport={"width": 1280, "height": 900})
            tab.on("console", lambda x: told.append(x.text))
            tab.on("pageerror", lambda x: told.append(str(x)))
            tab.goto(path.as_uri() + address)
            tab.wait_for_selector("#found", state="attached", timeout=60000)
            said.append(json.loads(tab.inner_text("#found")))
            tab.close()
        window.close()
        size = path.stat().st_size
    middle = sorted(said, key=lambda x: x["ready"])[1]
    tile = sorted(x["tile"] for x in said if x.get("tile") is not None)
    return {
        "megabytes": round(size / 1e6, 2),
        "ready, ms": round(middle["ready"]),
        "256 x 256 exact weights, ms": round(tile[1], 1) if tile else None,
        "elements": middle["nodes"],
        "requests": middle["requests"],
        "said on the console": len(told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save")
    parser.add_argument("--hold", action="store_true", help="end with an error over a budget")
    arguments = parser.parse_args()
    if found_browser() is None or importlib.util.find_spec("playwright") is None:
        print("left out: it needs chromium on the path, and pip install playwright")
        return
    rows = []
    for case, (make, address) in PAGES.items():
        rows.append({"page": case, **opened(make(), address)})
        print(rows[-1], *broken(rows[-1]), flush=True)
    if arguments.save:
        save(arguments.save, [], facts=rows)
    if arguments.hold and any(broken(row) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
