"""Size and speed of the page: one head of 32,768 tokens, and an overview of 32 x 32 heads.

    pip install playwright
    python benchmarks/page.py --save page-chromium      # with chromium on the path

`ready` is the time from opening to the first drawn view, `tile` that of 256 x 256 exact weights
(the median of nine), both measured in the page.
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
from side_by_side import save

from regard.views.page import page
from regard.views.run_file import Run

REPORT = """
const found = { ready: globalThis.READY, nodes: document.querySelectorAll("*").length };
const took = [];
if (manifest.deep.length) {
  await regard.show(regard.heads[0]);
  found.head = performance.now();
  for (let i = 0; i < 9; i++) {
    const began = performance.now();
    regard.exactTile(20000, 18000 + 100 * i, 256, 256);
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
        "queries": tokens, "keys": tokens, "grid": None, "special_tokens": 0, "rule": "",
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


def found_browser() -> str | None:
    """Where chromium is."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def opened(made: Run) -> dict[str, Any]:
    """Open the page in a browser, and give what it measured."""
    from playwright.sync_api import sync_playwright

    browser = found_browser()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page(made, REPORT), encoding="utf-8")
        with sync_playwright() as tools:
            window = tools.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            tab = window.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(path.as_uri())
            tab.wait_for_selector("#found", state="attached", timeout=60000)
            said = json.loads(tab.inner_text("#found"))
            window.close()
        size = path.stat().st_size
    return {
        "megabytes": round(size / 1e6, 2),
        "ready, ms": round(said["ready"]),
        "256 x 256 exact weights, ms": None if said.get("tile") is None else round(said["tile"], 1),
        "elements": said["nodes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save")
    arguments = parser.parse_args()
    if found_browser() is None or importlib.util.find_spec("playwright") is None:
        print("left out: it needs chromium on the path, and pip install playwright")
        return
    rows = []
    for case, made in (
        ("one head of 32,768 tokens, d 128", run(1, 1, 32768, 128, 48, True)),
        ("overview of 32 x 32 heads", run(32, 32, 4096, 128, 48, False)),
    ):
        rows.append({"page": case, **opened(made)})
        print(rows[-1], flush=True)
    if arguments.save:
        save(arguments.save, [], facts=rows)


if __name__ == "__main__":
    main()
