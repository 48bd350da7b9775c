"""What each head is worth for finding needles, on the model that ships: taken out one by one.

    python benchmarks/needle_heads.py --save needle-heads

36 pass keys are hidden in 256 tokens at three depths; a needle counts as found if every token of
its answer is the likeliest. Retrieval scores come from `regard.see` on other needles.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import textwrap
from typing import Any

import torch
from side_by_side import save

import regard
from regard.models.attach import attach, hook_of
from regard.models.loading import load
from regard.probes.importance import taken_out
from regard.probes.stimuli import needle


def measured(many: int) -> list[dict[str, Any]]:
    """The retrieval score of each head, and the needles that are lost without it."""
    model, tokenizer = load(None)
    model = model.float()
    score = regard.see(model, tokenizer=tokenizer, probes=["retrieval"], heads=0)
    told = {x.name: x.value for x in score.scores["retrieval"].heads()}
    text = inspect.getsource(textwrap)
    hidden = [
        needle(tokenizer, text, length=256, depth=depth, seed=seed)
        for seed in range(many) for depth in (0.2, 0.5, 0.8)
    ]  # fmt: skip
    ids = torch.cat([reading.inputs["input_ids"] for reading in hidden])

    def found() -> float:
        with torch.no_grad():
            said = model(ids).logits.argmax(-1)
        spans = [reading.spans["answer"] for reading in hidden]
        hits = [
            bool((said[i, a.start - 1 : a.stop - 1] == ids[i, a]).all())
            for i, a in enumerate(spans)
        ]
        return sum(hits) / len(hits)

    whole, lost = found(), {}
    for site in hook_of(model)[1]:
        for head in range(site.heads):
            with attach(model, taken_out([(site, head)]), check=False):
                lost[f"L{site.layer}H{head}"] = whole - found()
    best = max(told, key=lambda name: told[name])
    others = [x for name, x in lost.items() if name != best]
    rows = [
        {"head": name, "retrieval score": round(told[name], 3), "needles lost": round(x, 3)}
        for name, x in sorted(lost.items(), key=lambda pair: -pair[1])[:8]
    ]
    rows.append({"head": f"best by score: {best}", "retrieval score": round(told[best], 3),
                 "needles lost": round(lost[best], 3)})  # fmt: skip
    rows.append({"head": "mean of all others", "needles lost": round(statistics.mean(others), 3)})
    rows.append({"head": "none taken out: found", "needles lost": round(whole, 3)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--needles", type=int, default=12, help="at each of three depths")
    parser.add_argument("--save", help="name of a file in benchmarks/results/")
    options = parser.parse_args()
    lines = measured(options.needles)
    for line in lines:
        print(line)
    if options.save:
        save(options.save, [], facts=lines, needles=3 * options.needles)
