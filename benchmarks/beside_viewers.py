"""One text, shown by BertViz, CircuitsVis and Regard: bytes, seconds and memory of each page.

    pip install bertviz circuitsvis playwright        # with chromium on the path
    python benchmarks/beside_viewers.py --scripts FOLDER --pictures FOLDER --save beside-viewers

All three read the model that ships. A page is made by a process of its own: its seconds are those
of a processor after the model was loaded, with the forward that gives the weights, and its memory
is what the process took at most beyond the loaded model. `ready` is the time from opening the file
until the document holds still for half a second (that half not counted). BertViz' page loads
jQuery, D3 and require.js from a network: `--scripts` is a folder with `jquery.min.js`, `d3.min.js`
and `require.js`, which are given to it as if from there. What a viewer cannot do within `--limit`
seconds, or with a page of 500 MB, is said in words.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page import found_browser
from side_by_side import save

LENGTHS = (24, 256, 1024, 2048)
SENTENCE = "When Mary and John went to the store, John gave a drink to Mary. "
MOST = 500_000_000
MEMORY = 12_000_000_000
STILL = """() => new Promise((done) => {
  let last = performance.now(), count = -1;
  const look = () => {
    const now = document.querySelectorAll("*").length;
    if (now !== count) { count = now; last = performance.now(); }
    if (performance.now() - last > 500) done({ ready: last, nodes: count });
    else setTimeout(look, 20);
  };
  look();
})"""


def weights_of(model: Any, ids: Any) -> tuple[Any, ...]:
    """All weights of a model, as its eager code returns them: what both other viewers ask for."""
    import torch

    model.set_attn_implementation("eager")
    with torch.no_grad():
        found: tuple[Any, ...] = model(ids, output_attentions=True).attentions
    return found


def words_of(tokenizer: Any, ids: Any) -> list[str]:
    """The text of each token."""
    return [tokenizer.decode([x]) for x in ids[0].tolist()]


def by_bertviz(model: Any, ids: Any, tokenizer: Any, path: Path) -> None:
    """Write BertViz' model view: every layer and head."""
    from bertviz import model_view

    shown = model_view(weights_of(model, ids), words_of(tokenizer, ids), html_action="return")
    path.write_text(f"<!doctype html><meta charset=utf-8>{shown.data}", encoding="utf-8")


def by_circuitsvis(model: Any, ids: Any, tokenizer: Any, path: Path) -> None:
    """Write CircuitsVis' heads, layer by layer."""
    from circuitsvis.attention import attention_heads

    layers, words = weights_of(model, ids), words_of(tokenizer, ids)
    pages = [attention_heads(attention=x[0], tokens=words).local_src for x in layers]
    path.write_text(f"<!doctype html><meta charset=utf-8>{''.join(pages)}", encoding="utf-8")


def by_regard(model: Any, ids: Any, tokenizer: Any, path: Path) -> None:
    """Write Regard's page, with scores, roles and findings."""
    import regard

    regard.see(model, ids, tokenizer=tokenizer).save(str(path))


VIEWERS: dict[str, Callable[..., None]] = {
    "BertViz": by_bertviz, "CircuitsVis": by_circuitsvis, "Regard": by_regard,
}  # fmt: skip


def make(viewer: str, length: int, path: Path) -> dict[str, float]:
    """Make one page in this process, and say what it took."""
    import torch

    from regard.models.loading import load

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    model, tokenizer = load()
    ids = tokenizer(SENTENCE * (length // 8), return_tensors="pt").input_ids[:, :length]
    with torch.no_grad():
        model(ids[:, :8])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    VIEWERS[viewer](model, ids, tokenizer, path)
    seconds = time.process_time() - begun
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {"made, CPU s": round(seconds, 2), "memory, MB": round(taken / 1024)}


def opened(path: Path, scripts: Path, picture: Path | None) -> dict[str, Any]:
    """Open a page, and say when it is ready and what it asked of the network."""
    from playwright.sync_api import Error, sync_playwright

    asked = list[str]()

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        names = {"require": "require.js", "jquery": "jquery.min.js", "d3": "d3.min.js"}
        found = [file for word, file in names.items() if word in route.request.url.lower()]
        route.fulfill(path=scripts / found[0]) if found else route.abort()

    with sync_playwright() as tools:
        window = tools.chromium.launch(executable_path=found_browser(), args=["--no-sandbox"])
        tab = window.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(0)
        tab.route(re.compile("^https?:"), answer)
        try:
            tab.goto(path.as_uri())
            said = tab.evaluate(STILL)
            if picture is not None:
                tab.screenshot(path=picture)
        except Error as failed:
            return {"opens": f"no: {str(failed).splitlines()[0]}", "requests": len(asked)}
        finally:
            window.close()
    return {"ready, s": round(said["ready"] / 1000, 2), "elements": said["nodes"],
            "requests": len(asked)}  # fmt: skip


def row(viewer: str, length: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make and open one page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        command = [sys.executable, __file__, "--make", viewer, str(length), str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=arguments.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return {"made": f"no: not within {arguments.limit:.0f} s"}
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1][:200] if done.returncode > 0 else "killed"
            return {"made": f"no: {why}, with at most {MEMORY / 1e9:.0f} GB"}
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        said["page, MB"] = round(path.stat().st_size / 1e6, 2)
        if path.stat().st_size > MOST:
            return {**said, "opens": "not tried: more than 500 MB"}
        command = [sys.executable, __file__, "--open", str(path), "--scripts", arguments.scripts]
        if arguments.pictures:
            name = f"viewer-{viewer.lower()}-{length}.png"
            command += ["--pictures", str(arguments.pictures / name)]
        try:  # a page that is busy answers no timeout of its own
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=arguments.limit, check=True
            )
        except subprocess.TimeoutExpired:
            return {**said, "opens": f"no: still busy after {arguments.limit:.0f} s"}
        return {**said, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs=3)
    parser.add_argument("--open", type=Path)
    parser.add_argument("--scripts", type=Path, default=Path())
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--save")
    arguments = parser.parse_args()
    if arguments.make:
        viewer, length, path = arguments.make
        print(json.dumps(make(viewer, int(length), Path(path))))
        return
    if arguments.open:
        said = opened(arguments.open, arguments.scripts, arguments.pictures)
        print(json.dumps(said))
        return
    rows = []
    for length in LENGTHS:
        for viewer in VIEWERS:
            rows.append({"tokens": length, "viewer": viewer, **row(viewer, length, arguments)})
            print(rows[-1], flush=True)
    if arguments.save:
        save(arguments.save, [], facts=rows, text=f"{SENTENCE.strip()} (again and again)")


if __name__ == "__main__":
    main()
