"""No step and one round are the usual cache; two rounds are those of the formula."""

from __future__ import annotations

import torch

from regard.controls.deep_thinking import think
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama

LENGTH = 10


@check("deep_thinking_icl", beyond="few-shot accuracy of OPT, GPT-2, GPT-Neo and BLOOM")
@torch.no_grad()
def deep_thinking() -> Claims:
    """No step and one round are the usual cache; two rounds are those of the formula."""
    model = llama(1)
    ids, query = torch.randint(3, 60, (1, LENGTH)), torch.randint(3, 60, (1, 4))
    usual = model(query, past_key_values=model(ids, use_cache=True).past_key_values).logits
    still, once = (
        model(query, past_key_values=think(model, ids, **x)).logits
        for x in ({"rounds": 5, "step": 0.0}, {"rounds": 1})
    )
    x = model(ids, use_cache=True).past_key_values.layers[0]
    again = model(ids, past_key_values=think(model, ids, rounds=1), use_cache=True)
    fresh = again.past_key_values.layers[0]
    new = fresh.keys[:, :, LENGTH:], fresh.values[:, :, LENGTH:]
    full = think(model, ids, rounds=2, step=1.0, momentum=0.0).layers[0]
    # Round 2 moves by the gap g, round 3 by the next gap and momentum times g.
    eta, beta = 0.05, 0.9
    first = [a + eta * (b - a) for a, b in zip((x.keys, x.values), new, strict=True)]
    cache = think(model, ids, rounds=2, step=eta)
    second = model(ids, past_key_values=cache, use_cache=True).past_key_values.layers[0]
    gaps = [b - a for a, b in zip((x.keys, x.values), new, strict=True)]
    hand = [
        s + eta * ((n - s) + beta * g)
        for s, n, g in zip(
            first, (second.keys[:, :, LENGTH:], second.values[:, :, LENGTH:]), gaps, strict=True
        )
    ]
    three = think(model, ids, rounds=3, step=eta).layers[0]
    lengths = {r: think(model, ids, rounds=r).get_seq_length() for r in (1, 2, 5)}
    for said, logits in (("step 0", still), ("one round", once)):
        yield claim(
            "eta=0 or one round", f"difference of logits, {said}", gap(logits, usual)
        ).equals(0.0, "ordinary cached logits")
    yield claim(
        "eta=1, beta=0",
        "difference of keys and values",
        max(gap(full.keys, new[0]), gap(full.values, new[1])),
    ).within(1e-6, "those of the new reading", because=FLOAT32)
    yield claim(
        "Two rounds hand-computed",
        "difference of keys and values",
        max(gap(three.keys, hand[0]), gap(three.values, hand[1])),
    ).within(1e-6, "the formula, by hand", because=CATALOGUE)
    yield claim(
        "Query pass length", "tokens that a query reads", str(set(lengths.values()))
    ).equals(str({LENGTH}), "those of the examples, after any number of rounds")
