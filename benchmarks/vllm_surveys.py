"""Surveys of requests that vLLM serves, against `regard.see` and the weights of eager code."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.vllm_jobs import ask, demo, engine, texts


def seen() -> dict[str, Any]:
    """Compare the survey of a request with `regard.see` of the same tokens."""
    import torch

    import regard
    from regard.views.page import write_page
    from regard.views.run_file import Run

    model, tokenizer, folder = demo()
    prompts = texts(tokenizer, 4)
    of_scores, of_maps, page, scores = 0.0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as out:
        job = {
            "model": folder, "engine": engine(max_num_batched_tokens=128),
            "rounds": [{"prompts": prompts, "tokens": 4,
                        "extra": [{"regard_see": True}, None, {"regard_see": 1}, None]}],
        }  # fmt: skip
        answers = ask(f"see out={out} probes=sinks,shape", job)["rounds"][0]["answers"]
        files = sorted(Path(out).glob("*.npz"))
        for path in files:
            ids = prompts[int(path.stem.split("-")[1])]
            theirs = regard.see(model, torch.tensor([ids]), ["sinks", "shape"], heads=0).run()
            ours = Run.load(path)
            of_scores = max(of_scores, distance(ours, theirs, "scores/"))
            of_maps = max(of_maps, distance(ours, theirs, "entropy/", "received/"))
            scores = sorted(ours.manifest["scores"])
            page = write_page(ours, path.with_suffix(".html")).stat().st_size
        back = max(
            looked(model, prompts[i], answers[i]["tokens"], path)
            for path in Path(out).glob("*.lookback.json")
            for i in [int(path.name.split("-")[1])]
        )
    return {
        "asked": 2, "of": len(prompts), "requests": [x.stem.rpartition("-")[0] for x in files],
        "largest_difference_of_scores": of_scores,
        # Entropies and weights received are kept in 16 bits.
        "largest_difference_of_rows": of_maps, "largest_difference_of_lookback": back,
        "scores": scores, "bytes_of_a_page": page,
    }  # fmt: skip


def looked(model: Any, prompt: list[int], answer: list[int], path: Path) -> float:
    """Return how far lookback ratios of a request are from those of the weights of eager code."""
    import torch

    n, ids = len(prompt), torch.tensor([prompt + answer[:-1]])
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    model.set_attn_implementation(before)
    rows = json.loads(path.read_text())["lookback"]
    generated = torch.arange(1, ids.shape[1] - n + 1)
    found = 0.0
    for row, x in zip(rows, weights, strict=True):
        p, a = x[0, :, n:, :n].mean(-1), x[0, :, n:, n:].sum(-1) / generated
        want = (p / (p + a)).mean(-1)
        found = max(found, float((torch.tensor(row["heads"]) - want).abs().max()))
    return found


def distance(a: Any, b: Any, *kinds: str) -> float:
    """Return the largest difference between two runs, of arrays of some kinds."""
    import numpy as np

    names = [x for x in b.arrays if x.startswith(kinds)]
    assert names
    assert set(names) <= set(a.arrays)
    return max(
        float(np.nanmax(np.abs(a.arrays[x].astype("f8") - b.arrays[x].astype("f8")))) for x in names
    )
