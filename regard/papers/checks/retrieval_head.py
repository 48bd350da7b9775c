"""A copying head scores 1, all others 0; without it the copying is gone, without others not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from regard.models.engine import Engine
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import claim
from regard.papers.shared.copier_models import looked, pointing
from regard.probes.importance import taken_out
from regard.probes.reading import Reading
from regard.probes.roles import Retrieval


@check(
    "retrieval_head",
    narrowed={"Handmade induction model": "heads whose maps are given, not a model of weights"},
    same="maps are made by hand",
)
def retrieval() -> Claims:
    """A copying head scores 1, all others 0; without it the copying is gone, without others not."""
    n, needle, answer = 40, slice(8, 13), slice(35, 40)
    tokens = torch.arange(100, 100 + n)
    tokens[answer] = tokens[needle]
    keys = torch.arange(n).repeat(4, 1)
    for step in range(5):  # the query before each word of the answer looks at that word
        keys[2, answer.start - 1 + step] = needle.start + step
        keys[1, answer.start - 1 + step] = 3
    reading = Reading({"input_ids": tokens[None]}, spans={"needle": needle, "answer": answer})
    call = pointing(keys)
    scores = looked(Retrieval(), call, reading)
    counted = looked(Retrieval(definition="counts"), call, reading)

    words = F.one_hot(tokens, 200).float()[None, None].expand(1, 4, -1, -1)
    site = Site(0, module="attention", heads=4, kv_heads=4)
    said = call.replace(v=words, site=site)

    def copied(out_of: list[int]) -> float:
        gone = taken_out([(site, head) for head in out_of])
        rows = torch.arange(answer.start - 1, answer.stop - 1)
        # Other heads look at the token itself, or at token 3: not what is said next.
        told = Engine([gone]).run(said).sum(1)[0][rows]
        told.scatter_(1, tokens[rows, None], 0.0)
        told[:, tokens[3]] = 0.0
        return float((told.argmax(-1) == tokens[answer]).float().mean())

    without_it, without_others = copied([2]), copied([0, 1, 3])
    yield claim("Handmade induction model", "scores by the set", str(scores.tolist())).equals(
        "[0.0, 0.0, 1.0, 0.0]", "the copying head alone"
    )
    yield claim("Score lies in [0,1]", "scores by counting", str(counted.tolist())).equals(
        "[0.0, 0.0, 1.0, 0.0]", "the copying head alone"
    )
    yield claim("Masking it breaks", "copied without it", without_it).equals(0.0, "nothing")
    yield claim("Masking it breaks", "copied without all the others", without_others).equals(
        1.0, "everything"
    )
