"""Are the heads that score as induction and retrieval heads those that copying and fetching need?

    python scripts/demo_model/taken_out.py --save   # the "ablation" of regard/demo/evaluation.json

The heads of a role are taken out together; then as many others, drawn at random 200 times, under
three baselines: any other head; any but those that score as induction, retrieval or previous-token
heads (what feeds a copier breaks it as well); and heads of the same layers, every set of which is
tried (it may share heads with the role: how many is said). Needs nothing but the model: random
tokens shown twice, and pass keys hidden in a module of the standard library.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import random
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regard
from regard.models.loading import load
from regard.models.site import Site
from regard.probes.importance import taken_out
from regard.probes.stimuli import needle, repeated
from regard.views.seen import ROLES

Place = tuple[Site, int]
FACTS = Path(__file__).resolve().parents[2] / "regard" / "demo" / "evaluation.json"
COPIERS = ("induction", "retrieval", "previous_token")
DRAWS, PERIOD = 200, 128


def measures(model: Any, tokenizer: Any) -> Callable[[Sequence[Place]], dict[str, float]]:
    """Make what measures the model without some heads: loss on repeats, needles, loss on these."""
    twice = repeated(model.config.vocab_size, first=0, period=PERIOD, rows=8, seed=1).tokens
    text = inspect.getsource(textwrap)
    hidden = [
        needle(tokenizer, text, length=256, depth=depth, seed=100 + seed)
        for seed in range(8) for depth in (0.1, 0.5, 0.9)
    ]  # fmt: skip
    asked = torch.cat([reading.inputs["input_ids"] for reading in hidden])
    count = hidden[0].spans["answer"].stop - hidden[0].spans["answer"].start
    answers = asked[:, -count:]  # the answer is the end of each
    known: dict[frozenset[tuple[int, int]], dict[str, float]] = {}

    @torch.no_grad()
    def measured(heads: Sequence[Place]) -> dict[str, float]:
        key = frozenset((site.layer, head) for site, head in heads)
        if key not in known:
            with regard.attach(model, taken_out(heads), check=False):
                copied = model(input_ids=twice).logits[:, PERIOD + 1 : -1]
                said = model(input_ids=asked, logits_to_keep=count + 1).logits[:, :-1]
            loss, wanted = torch.nn.functional.cross_entropy, twice[:, PERIOD + 2 :]
            known[key] = {
                "loss on repeats": float(loss(copied.flatten(0, 1), wanted.flatten())),
                "needles found": float((said.argmax(-1) == answers).all(1).float().mean()),
                "loss on needles": float(loss(said.flatten(0, 1), answers.flatten())),
            }
        return known[key]

    return measured


def compared(told: float, drawn: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """How a change compares with those of draws: mean with its 95% interval (bootstrap), median."""
    x = np.array(drawn)
    again = np.random.default_rng(seed).choice(x, (10_000, len(x))).mean(1)
    low, high = np.quantile(again, [0.025, 0.975])

    def times(y: float) -> float | None:
        return round(told / float(y), 2) if y > 0 else None

    return {
        "mean": round(float(x.mean()), 3),
        "95% of the mean": [round(float(low), 3), round(float(high), 3)],
        "median": round(float(np.median(x)), 3),
        "worst": round(float(x.max()), 3),
        "times the mean": times(x.mean()),  # none where draws, on average, do no harm
        "95% of times": [times(high), times(low)],
        "share of draws it is 5 times": round(float((told >= 5 * x).mean()), 3),
    }


def ablations(model: Any, tokenizer: Any, draws: int = DRAWS) -> dict[str, Any]:
    """Everything that the card says of heads taken out."""
    seen = regard.see(model, tokenizer=tokenizer, probes=["roles"], heads=0)
    measured = measures(model, tokenizer)
    plain = measured([])
    everyone = [(site, head) for site in seen.sites for head in range(site.heads)]
    scored = {
        name: [(x.site, x.head) for x in seen.top(name, len(everyone)) if x.value >= ROLES[name]]
        for name in COPIERS
    }
    copiers = {place for places in scored.values() for place in places}
    found: dict[str, Any] = {}
    for role in ("induction", "retrieval"):
        chosen = scored[role]
        size, rng = len(chosen), random.Random(0)
        others = [x for x in everyone if x not in chosen]
        rest = [x for x in everyone if x not in copiers]
        layers = {site for site, _ in chosen}
        near = [x for x in everyone if x[0] in layers]
        sets = {
            "any other heads": [rng.sample(others, size) for _ in range(draws)],
            "others that score as no copier": [rng.sample(rest, size) for _ in range(draws)],
            "all other sets of the same layers": [
                x for x in itertools.combinations(near, size) if set(x) != set(chosen)
            ],
            "all that is left of the same layers": [[x for x in near if x not in chosen]],
        }
        told = _cost(measured(chosen), plain)
        found[role] = {"heads": [f"L{s.layer}H{h}" for s, h in chosen], **told, "against": {}}
        for name, drawn in sets.items():
            costs = [_cost(measured(x), plain) for x in drawn]
            found[role]["against"][name] = {
                "draws": len(drawn),
                "of heads": len({place for x in drawn for place in x}),
                "heads shared with the role, mean": round(
                    float(np.mean([len(set(x) & set(chosen)) for x in drawn])), 2
                ),
                **{key: compared(told[key], [cost[key] for cost in costs]) for key in told},
            }
    found["plain"] = {key: round(x, 3) for key, x in plain.items()}
    found["roles"] = {f"L{s.layer}H{h}": role for (s, h), role in seen.roles.first().items()}
    found["alone"] = {f"L{s.layer}H{h}": _cost(measured([(s, h)]), plain) for s, h in everyone}
    return found


def _cost(without: dict[str, float], plain: dict[str, float]) -> dict[str, float]:
    return {
        "rise of loss on repeats": round(without["loss on repeats"] - plain["loss on repeats"], 4),
        "needles lost": round(plain["needles found"] - without["needles found"], 4),
        "rise of loss on needles": round(without["loss on needles"] - plain["loss on needles"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--save", action="store_true", help="into regard/demo/evaluation.json")
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    said = ablations(model.float(), tokenizer, arguments.draws)
    print(json.dumps(said, indent=2))
    if arguments.save:
        facts = json.loads(FACTS.read_text(encoding="utf-8"))
        facts["ablation"] = said
        FACTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
