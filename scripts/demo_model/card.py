"""Write regard/demo/README.md, the card of the model that ships, from its numbers.

python scripts/demo_model/card.py
"""

import json
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / "regard" / "demo"


def card() -> str:
    """The card."""
    facts = json.loads((HOME / "evaluation.json").read_text())
    corpus = json.loads((HOME / "corpus.json").read_text())
    log = [json.loads(line) for line in (HOME / "training-log.jsonl").read_text().splitlines()]
    hours = log[-1]["seconds"] / 3600
    taken = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in corpus["bytes"].items())
    depths = list(next(iter(facts["needles"].values())))
    needles = "\n".join(
        f"| {length} | " + " | ".join(f"{found[d]:.2f}" for d in depths) + " |"
        for length, found in facts["needles"].items()
    )
    curve = ", ".join(f"{x['step']}: {x['loss']:.2f}" for x in log if x["step"] % 200 == 0)
    roles: dict[str, list[str]] = {}
    for head, role in facts["ablation"]["roles"].items():
        roles.setdefault(role, []).append(head)
    heads = "\n".join(f"| {role} | {', '.join(names)} |" for role, names in roles.items())
    rows = []
    for role in ("induction", "retrieval"):
        x = facts["ablation"][role]
        other = x["as many random other heads"]
        rows.append(
            f"| the {len(x['heads'])} heads that score as {role} | {x['rise of loss on repeats']} "
            f"| {x['needles found']} |\n| as many others, mean of {other['draws']} draws (median, "
            f"worst) | {other['rise, mean']} ({other['rise, median']}, {other['rise, worst']}) | "
            f"{other['needles found, mean']} |"
        )
    plain = facts["ablation"]["plain"]
    changes = ", ".join(
        f"{name} {x}" for name, x in facts["change of scores between three texts"].items()
    )
    return f"""# The model that ships

Written by `python scripts/demo_model/card.py` from `evaluation.json`, `corpus.json` and
`training-log.jsonl`, which the scripts beside it wrote. `make demo-model` does it all again.

A Llama in transformers' format: {facts["parameters"]:,} parameters in bfloat16, 4 layers of 8 heads
on 4 key heads, 192 channels, a byte-level BPE of 2,048 tokens, 2,048 tokens of context. It is small
so that it can be looked at anywhere; it knows some Python and little else, and repeats itself when
it writes. Use it to try tools, not for answers.

It read {len(log) * 10 * 16384 / 1e6:.0f} million tokens in {hours:.1f} hours of one CPU core.
A quarter of the rows are repeats, pass keys and pairs (`passages.py`), the rest are sources and
documentation under BSD, MIT, Apache, PSF and public-domain terms: {taken}.

Loss by step: {curve}.

## What it can do

- {facts["bits per byte, held out"]} bits a byte on {corpus["held_out_bytes"] / 1e6:.1f} MB of
  documents it never saw
- {facts["copy accuracy"]:.3f} of 128 random tokens right when they are shown a second time
- pass keys said right, all five digits, by length of the text and depth of the key (8 each):

| tokens | {" | ".join(f"depth {d}" for d in depths)} |
|---|{"---|" * len(depths)}
{needles}

## What its heads are for

| role | heads |
|---|---|
{heads}

Taken out, against as many other heads (loss on repeats {plain["loss on repeats"]}, needles
{plain["needles"]} with all heads there):

| taken out | rise of the loss on repeats | needles found |
|---|---|---|
{chr(10).join(rows)}

The same heads copy and fetch here. Random draws that meet the previous-token heads, or what feeds
them, break copying as well; that is why their mean is far above their median. Largest change of a
head's score between three kinds of text: {changes}.
"""


if __name__ == "__main__":
    (HOME / "README.md").write_text(card(), encoding="utf-8")
