"""Heads sum to the layer; the lens of the head that tells reaches the model, others do not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from regard.circuits.lenses import train_lenses
from regard.layers.attention import Attention
from regard.layers.building import model as stack
from regard.models.attach import hook_of
from regard.models.residual import watched
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.shipped_model import demo
from regard.papers.shared.wired import PlainNorm


@check("attention_lens", beyond="GPT-2's 144 lenses, and their themes")
def attention_lens() -> Claims:
    """Heads sum to the layer; the lens of the head that tells reaches the model, others do not."""
    model, ids = demo()
    stream = watched(model, ids)
    whole, outs = {}, {}
    for layer in stream.layers:
        module = model.get_submodule(layer.site.module)
        module.register_forward_hook(lambda m, a, o, site=layer.site: outs.__setitem__(site, o[0]))
    with torch.no_grad():
        model(ids)
    for layer in stream.layers:
        made = stream.heads(layer.site).sum(1) + stream.bias(layer.site)
        whole[layer.site] = gap(made, outs[layer.site])
    restart()
    tiny = stack(
        [Attention(16, heads=4, causal=True)], vocab=12, dim=16, tied=False,
    )  # fmt: skip
    tiny.norm = PlainNorm()  # logits are linear in what is said
    mixer = tiny.stack.blocks[0].mixer
    with torch.no_grad():
        mixer.to_out.weight[:, :4] *= 30.0  # the first head alone says something
        mixer.to_out.weight[:, 4:] = 0.0
        tiny.embedding.weight *= 1e-3
        tiny.head.weight *= 3.0
        mixer.to_v.weight *= 20.0
    ids = torch.randint(0, 12, (64, 20))
    site = hook_of(tiny)[1][0]
    # At a rate of 1e-2 and of sharper predictions, lenses swung about their least: 0.004 to 0.15.
    lenses = train_lenses(tiny, ids, [(site, h) for h in range(4)], steps=1500, rate=5e-3)
    with torch.no_grad():
        target = tiny(ids).log_softmax(-1).flatten(0, 1)
    # In logarithms: a mean of float32 shares can be 0, and its logarithm no number.
    unigram = target.logsumexp(0) - math.log(len(target))
    floor = float(F.kl_div(unigram.expand_as(target), target, log_target=True,
                           reduction="batchmean"))  # fmt: skip
    losses = [lenses.loss[site, h] for h in range(4)]
    yield claim(
        "Sum over heads", "largest difference of the layers that ship", max(whole.values())
    ).within(1e-5, "the attention block's output", because=CATALOGUE)
    yield claim("On a toy model", "KL of the lens of the head that tells", losses[0]).below(
        floor, "the unigram's KL", times=0.1, because="near 0: a tenth"
    )
    for i, lost in enumerate(losses[1:], 1):
        yield claim("On a toy model", f"KL of the lens of silent head {i}", lost).within(
            0.1 * floor, "the unigram's KL", value=floor, because="converge to it: within a tenth"
        )
