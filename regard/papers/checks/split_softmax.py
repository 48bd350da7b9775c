"""The share of a part becomes its power, rows sum to one, and a talk drifts less for it."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.controls.token_sets import TokenPositions
from regard.controls.weight_edits import ShareToPower
from regard.core.call import Call
from regard.core.partial import Partial, merge
from regard.core.rule import Rule
from regard.core.support import Causal, ChosenKeys
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.shared.measure import gap
from regard.run.runner import partial_of, run

SPAN = (1, 2, 3)


def _call(n: int = 12) -> Call:
    q, k, v = (torch.randn(2, h, n, 8, dtype=torch.float64) for h in (4, 2, 2))
    return Call.of(2 * q, k, v, Rule(Causal()))


def _edited(call: Call, k: float) -> Call:
    return ShareToPower(TokenPositions(SPAN), k).before(EditContext(call, Prompt()))


def _weights(call: Call) -> Tensor:
    found = run(call, ("weights",)).weights
    assert found is not None
    return found


def _mixed(call: Call, k: float) -> Tensor:
    """Write the two partial attentions out, and mix them by the powers of their shares."""
    span = ChosenKeys(torch.tensor(SPAN).view(1, 1, 1, -1))
    rule = call.rule
    parts = [
        partial_of(call.replace(rule=rule.replace(support=rule.support & part)))
        for part in (span, ~span)
    ]
    whole = merge(*parts)
    assert whole.lse is not None
    assert parts[0].lse is not None
    share = torch.exp(parts[0].lse - whole.lse)[..., None]
    some = (share > 0) & (share < 1)
    new = torch.where(some, share**k, share)
    return Partial(new * parts[0].out + (1 - new) * parts[1].out, None).out


def _drift(k: float) -> float:
    """Let a model say what its prompt asks for as often as it looks there, over 40 turns.

    At each turn it says the word of the prompt with the probability of the mass on it; what it says
    else is drawn from its own earlier turns. The drift is one minus the share said at the end.
    """
    turns, size = 40, 8
    prompt, other = torch.randn(2, size, dtype=torch.float64)
    said = [1.0]
    for turn in range(1, turns):
        keys = torch.stack([prompt] * 3 + [prompt * x + other * (1 - x) for x in said])
        keys = keys + 0.3 * torch.randn(len(keys), size, dtype=torch.float64)
        q = torch.randn(1, 1, 1, size, dtype=torch.float64)
        call = Call.of(q, keys[None, None], keys[None, None], Rule(offset=2 + turn))
        # The word of the prompt weighs 1, and a turn what it said of it.
        values = torch.tensor([1.0] * 3 + said, dtype=torch.float64).view(1, 1, -1, 1)
        edit = ShareToPower(TokenPositions((0, 1, 2)), k)
        new = edit.before(EditContext(call.replace(v=values), Prompt()))
        # A turn forgets a tenth of what it saw: without the prompt all fades.
        said.append(0.9 * float(run(new).out))
    return 1 - sum(said[-10:]) / 10


@check(
    "split_softmax",
    beyond="language models that talk to themselves, and a judge of what they say",
)
def split_softmax() -> Claims:
    """The share of a part becomes its power, rows sum to one, and a talk drifts less for it."""
    call = _call()
    old = _weights(call)
    share = old[..., list(SPAN)].sum(-1)
    some = (share > 0) & (share < 1)
    k = 0.2 + 0.6 * float(torch.rand(()))
    new = _weights(_edited(call, k))
    mass = new[..., list(SPAN)].sum(-1)
    # Near 1, where the identity is not taken for granted, too.
    almost = _weights(_edited(call, 1.0 + 1e-12))
    zero = _weights(_edited(call, 0.0))[..., list(SPAN)].sum(-1)
    drifts = [_drift(x) for x in (1.0, 0.6, 0.3)]
    yield claim("k=1 is the identity", "difference of weights", gap(almost, old)).within(
        1e-6, "the unchanged weights", because=CATALOGUE
    )
    yield claim(
        "rows sum to 1", "distance of a row's sum from 1", gap(new.sum(-1), old.sum(-1))
    ).within(1e-12, "rows of the unchanged weights", because=FLOAT64)
    yield claim("span mass equals pi^k", "difference", gap(mass[some], share[some] ** k)).within(
        1e-12, "the power of the share", because=FLOAT64
    )
    yield claim("k to 0 sends all", "least mass on the span", float(zero[some].min())).within(
        1e-12, "1", value=1.0, because=FLOAT64
    )
    both = gap(run(_edited(call, k)).out, _mixed(call, k))
    yield claim("LSE-mixed implementation", "difference of outputs", both).within(
        1e-12, "two attentions mixed by hand", because=FLOAT64
    )
    yield claim("In a planted model", "drift at k = 0.6", drifts[1]).below(drifts[0], "at k = 1")
    yield claim("In a planted model", "drift at k = 0.3", drifts[2]).below(drifts[1], "at k = 0.6")
