"""Parts add up to logits; weights made even choose no place; an edited vector favors none."""

from __future__ import annotations

import torch

from regard.controls.anchored_options import edited_vectors, option_scores
from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.controls.token_sets import TokenPositions
from regard.controls.weight_edits import EvenOut, Swap
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.residual import watched
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.probes.logits import logit_parts
from regard.run.runner import run

OPTIONS, OTHERS = (2, 5, 8, 11), (21, 22, 23)
A = 20


@check(
    "anchored_bias_edit",
    beyond="multiple-choice questions asked of GPT-2",
)
@torch.no_grad()
def anchored() -> Claims:
    """Weights made even choose no place; an edited vector favors no option."""
    q, k, v = (torch.randn(1, 2, 14, 8, dtype=torch.float64) for _ in range(3))
    q[..., 0] = 6.0
    k[:, :, OPTIONS[0], 0] = 3.0  # the first place draws the head
    call = Call.of(q, k, v, Rule(Causal()))
    edit = EvenOut(tuple(TokenPositions((x,)) for x in OPTIONS), 1.0)
    even = edit.before(EditContext(call, Prompt(torch.zeros(1, 14).long())))
    old, new = (run(x, ("weights",)).weights for x in (call, even))
    assert old is not None
    assert new is not None
    # The places of two options exchange what every query gives them.
    exchange = Swap(TokenPositions((OPTIONS[0],)), TokenPositions((OPTIONS[2],)))
    swapped = run(
        exchange.before(EditContext(call, Prompt(torch.zeros(1, 14).long()))), ("weights",)
    ).weights
    assert swapped is not None
    both = old[..., OPTIONS[2] :, :]  # queries that see both of them
    exchanged = both.clone()
    exchanged[..., [OPTIONS[0], OPTIONS[2]]] = both[..., [OPTIONS[2], OPTIONS[0]]]
    last = [x[0, 0, -1, list(OPTIONS)] for x in (old, new)]
    # A head writes what it reads: it chooses the option whose word has the largest weight.
    rates = [(x / x.sum()).max() for x in last]
    small = llama(2)
    ids = torch.randint(3, 60, (2, 14))
    parts = logit_parts(watched(small, ids), A).total
    logits = small(ids).logits[:, -1, A]
    model = llama(2).double()
    scores = option_scores(model, 1, A, OTHERS)
    unit = int(scores.argmax())
    # By the equation, from the model's weights: (W_U v)[A], and its mean over the options.
    rows, down = model.lm_head.weight, model.model.layers[1].mlp.down_proj.weight
    way = rows[A] - rows[[A, *OTHERS]].mean(0)
    written = gap(scores, torch.einsum("du,d->u", down, way))
    vector = down[:, unit].clone()
    with edited_vectors(model, [(1, unit)], A, OTHERS):
        after = option_scores(model, 1, A, OTHERS)
        fell = float(rows[A] @ (vector - down[:, unit]))
    predicted = float((vector @ way) * (rows[A] @ way) / (way @ way))
    back = option_scores(model, 1, A, OTHERS)
    others = [i for i in range(len(scores)) if i != unit]
    yield claim(
        "Head plus FFN logit contributions", "difference of the sum", gap(parts, logits)
    ).within(1e-4, "the model's logits", because=CATALOGUE)
    yield claim(
        "Swapping preserves row sums", "distance of a row's sum", gap(swapped.sum(-1), old.sum(-1))
    ).within(1e-12, "1", because=FLOAT64)
    yield claim(
        "Swapping preserves row sums",
        "difference of weights",
        gap(swapped[..., OPTIONS[2] :, :], exchanged),
    ).within(1e-12, "two columns exchanged", because=FLOAT64)
    yield claim(
        "averaging weights makes", "distance of a row's sum", gap(new.sum(-1), old.sum(-1))
    ).within(1e-12, "1", because=FLOAT64)
    yield claim("averaging weights makes", "largest share of a place", float(rates[1])).within(
        1e-12, "one of four", value=0.25, because=FLOAT64
    )
    yield claim(
        "averaging weights makes", "largest share of a place as it was", float(rates[0])
    ).above(0.5, "most of it", because="half")
    yield claim(
        "After edit (W_U v)[A]", "what the vector adds to A above the mean", abs(float(after[unit]))
    ).within(1e-9, "0, as predicted", because=FLOAT64)
    yield claim("After edit (W_U v)[A]", "difference of what every vector adds", written).within(
        1e-9, "(W_U v)[A] less its mean over the options", because=FLOAT64
    )
    yield claim("After edit (W_U v)[A]", "fall of (W_U v)[A] in the weights", fell).within(
        1e-9, "its part along W_U[A] less the mean", value=predicted, because=FLOAT64
    )
    yield claim("After edit (W_U v)[A]", "what it added", float(scores[unit])).above(
        0, "it raised A"
    )
    yield claim(
        "After edit (W_U v)[A]",
        "difference of all other vectors",
        gap(after[others], scores[others]),
    ).equals(0.0, "none")
    yield claim("After edit (W_U v)[A]", "difference after it", gap(back, scores)).equals(
        0.0, "the weights are put back"
    )
