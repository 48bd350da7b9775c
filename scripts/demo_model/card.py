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
    measures = {
        "rise of loss on repeats": "loss on repeats", "needles lost": "needles lost",
        "rise of loss on needles": "loss on needles",
    }  # fmt: skip
    for role in ("induction", "retrieval"):
        x = facts["ablation"][role]
        for key, words in measures.items():
            for against, drawn in x["against"].items():
                y = drawn[key]
                if drawn["draws"] == 1:
                    rows.append(
                        f"| {len(x['heads'])} {role} | {words} | {x[key]:.2f} | {against} "
                        f"({drawn['of heads']} heads) | {y['mean']:.2f} | | | |"
                    )
                    continue
                low, high = y["95% of the mean"]
                times = "none" if y["times the mean"] is None else f"{y['times the mean']}x"
                rows.append(
                    f"| {len(x['heads'])} {role} | {words} | {x[key]:.2f} | {against} "
                    f"({drawn['draws']}) | {y['mean']:.2f} ({low:.2f} to {high:.2f}) | "
                    f"{y['median']:.2f} | {times} | {y['share of draws it is 5 times']:.0%} |"
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

Taken out together, against as many other heads (with all heads there: loss on repeats
{plain["loss on repeats"]}, needles found {plain["needles found"]}, loss on needles
{plain["loss on needles"]}); `taken_out.py` measures it again in a quarter of an hour:

| taken out | what | | against (draws) | mean (95%) | median | times the mean | 5x in |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

The same heads copy and fetch here, and they all stand in the last layer. For copying, the induction
heads cost five times the mean of random others only where heads that score as copiers, or as
previous-token heads, are left out of the draw: draws that meet these, or what feeds them, pull the
mean far above the median. For needles found it holds against no draw: few are found to begin with,
and random heads lose a third to a half of them. What is left of the last layer does no harm when it
is taken out; other sets of that layer share heads with the role.

Largest change of a
head's score between three kinds of text: {changes}.
"""


if __name__ == "__main__":
    (HOME / "README.md").write_text(card(), encoding="utf-8")
