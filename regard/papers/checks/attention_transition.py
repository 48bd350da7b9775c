"""No share is the model, a whole one attention renormalized; learned shares lower a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from regard.controls.carried_context import AttentionTransition, Carriers, MixCarriers, learn_shares
from regard.controls.context import EditContext
from regard.controls.prompt import Prompt
from regard.controls.steering import Steering
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.attach import attach
from regard.models.site import Site
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT64, claim
from regard.papers.shared.copier_models import copier
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.run.runner import run

PERIOD, NOISE, MANY, ROWS = 12, 40, 16, 16


def _example() -> tuple[Tensor, Tensor]:
    """Tokens shown twice, then many others once; what follows are the first ones again."""
    shown = torch.randint(0, 40, (ROWS, PERIOD))
    noise = torch.randint(0, 40, (ROWS, NOISE))
    return torch.cat((shown, shown, noise, shown[:, :1]), 1), shown[:, 1:]


def _loss(model: nn.Module, shares: float | Tensor) -> float:
    """The loss of what follows contexts, under these shares."""
    losses = []
    for _ in range(8):
        context, rest = _example()
        control = AttentionTransition(MANY, shares)
        stage = Steering(control, prompt=context, measure="none", must_move=False)
        with attach(model, stage, check=False), torch.no_grad():
            said = model(torch.cat((context, rest), 1))[:, context.shape[1] - 1 : -1]
        losses.append(float(cross_entropy(said.flatten(0, 1), rest.flatten())))
    return sum(losses) / len(losses)


@check(
    "attention_transition",
    narrowed={"on a toy copying LM": "two layers of attention, 16 carriers of 65 tokens"},
    beyond="how the paper makes it, LLaMA-7B, XSum and judgments of GPT-4",
)
def transition() -> Claims:
    """No share is the model, a whole one attention renormalized; learned shares lower a loss."""
    frozen, ids = llama(2), torch.randint(3, 60, (1, 24))
    plain = frozen(ids).logits.detach()
    stage = Steering(AttentionTransition(4, 0.0), prompt=ids[:, :16], must_move=False)
    with attach(frozen, stage, check=False), torch.no_grad():
        same = frozen(ids).logits
    q, k, v = (torch.randn(1, h, 20, 8, dtype=torch.float64) for h in (4, 2, 2))
    call = Call.of(2 * q, k, v, Rule(Causal()), site=Site(0, module="a", heads=4, kv_heads=2))
    context = 12
    at = EditContext(call, Prompt(torch.zeros(1, context).long()), phase="decoded")
    out = MixCarriers(Carriers(context), 1.0).after(at, run(call)).out
    weights = run(call, ("weights",)).weights
    assert weights is not None
    inside = weights[..., :context] / weights[..., :context].sum(-1, keepdim=True)
    known = inside @ v[:, :, :context].repeat_interleave(2, 1)
    tiny, _ = copier(2)
    shares = learn_shares(tiny, _example, many=MANY, steps=60, rate=0.2)
    seed = torch.random.get_rng_state()
    before = _loss(tiny, 0.0)
    torch.random.set_rng_state(seed)
    after = _loss(tiny, shares)
    yield claim("With s_h = 0 outputs", "logits equal", torch.equal(same, plain)).equals(
        True, "bit for bit"
    )
    yield claim(
        "with s_h = 1 and k = all", "largest difference of decoded outputs",
        gap(out[:, :, context:], known[:, :, context:]),
    ).within(1e-9, "attention renormalized over the context", because=FLOAT64)  # fmt: skip
    yield claim("on a toy copying LM", "loss with learned shares", after).below(
        before, "of the frozen model on the same contexts"
    )
