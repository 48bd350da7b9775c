"""A copying head scores 1, all others 0; without it the copying is gone, without others not."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from regard.models.attach import attach, hook_of
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.wired import Wired
from regard.probes.importance import taken_out
from regard.probes.reading import Reading
from regard.probes.roles import Retrieval

WORDS, LENGTH, NEEDLE, ANSWER = 44, 40, slice(8, 13), slice(35, 40)


def _model() -> Wired:
    """The induction circuit made by hand, with both heads of layer 0 writing the token before.

    With one of them, taking it out would break the copying as well: it is what the copying head
    looks for.
    """
    made, d = Wired(WORDS, LENGTH), max(WORDS, LENGTH)
    one = made.layers[0]
    with torch.no_grad():
        for part in (one.to_q, one.to_k, one.to_v):
            part.weight[:d] = part.weight[d : 2 * d]
        one.to_out.weight[:, :d] = one.to_out.weight[:, d : 2 * d]
    return made


def _scores(model: Wired, reading: Reading, definition: str) -> dict[str, float]:
    probe = Retrieval(definition=definition)
    probe.show(reading)
    with attach(model, [probe], check=False), torch.no_grad():
        model(reading.inputs["input_ids"])
    return {f"L{x.site.layer}H{x.head}": x.value for x in probe.told().heads()}


@check("retrieval_head", beyond="needles in the texts of large models")
def retrieval() -> Claims:
    """A copying head scores 1, all others 0; without it the copying is gone, without others not."""
    model = _model()
    # Word 0 is what logits of nothing say: no token is that.
    tokens = torch.randperm(WORDS - 1)[:LENGTH] + 1
    # The answer is asked for by the token before the needle.
    tokens[ANSWER.start - 1] = tokens[NEEDLE.start - 1]
    tokens[ANSWER] = tokens[NEEDLE]
    ids = tokens[None]
    reading = Reading({"input_ids": ids}, spans={"needle": NEEDLE, "answer": ANSWER})
    scores, counted = (_scores(model, reading, x) for x in ("set", "counts"))
    sites = hook_of(model)[1]

    def copied(site: int | None = None, head: int = 0) -> float:
        """Share of the needle that the model says, without a head."""
        gone = nullcontext() if site is None else attach(
            model, taken_out([(sites[site], head)]), check=False
        )  # fmt: skip
        with gone, torch.no_grad():
            said: Tensor = model(ids)[0, ANSWER.start - 1 : ANSWER.stop - 1].argmax(-1)
        return float((said == tokens[ANSWER]).float().mean())

    others = [copied(site, head) for site, head in ((0, 0), (0, 1), (1, 1))]
    wanted = str({"L0H0": 0.0, "L0H1": 0.0, "L1H0": 1.0, "L1H1": 0.0})
    yield claim(
        "Handmade induction model", "scores by the set", str(dict(sorted(scores.items())))
    ).equals(wanted, "the copying head alone")
    yield claim(
        "Score lies in [0,1]", "scores by counting", str(dict(sorted(counted.items())))
    ).equals(wanted, "the copying head alone")
    yield claim("Handmade induction model", "share of the needle that is said", copied()).equals(
        1.0, "all of it"
    )
    yield claim("Masking it breaks", "copied without it", copied(1, 0)).equals(0.0, "nothing")
    yield claim("Masking it breaks", "least copied without any other head", min(others)).equals(
        1.0, "everything"
    )
