"""Shared distant scores are one softmax; copied layers are grouped, and share without error."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.heads import expand_heads
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.shared.measure import gap
from regard.papers.shared.small_llama import llama
from regard.policies.distant import PoD, alike, grouped
from regard.policies.shrinking import Shrinking
from regard.run.reference import score_matrix, weight_matrix
from regard.verbs import shrink


class Passing(Stage):
    """Holds the calls and the outputs of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, Call] = {}
        self.outs: dict[int, Tensor] = {}

    def before(self, call: Call) -> Call:
        """Hold the call."""
        self.calls[call.site.layer] = call
        return call

    def after(self, call: Call, partial: Result) -> Result:
        """Hold the output."""
        self.outs[call.site.layer] = partial.out
        return partial


def shared_by_hand(own: Call, first: Call, sinks: int, window: int) -> Tensor:
    """One softmax over a layer's own near scores and another layer's distant ones."""
    near, allowed = score_matrix(own)
    far = score_matrix(first)[0]
    i, j = torch.arange(own.n)[:, None], torch.arange(own.m)
    close = (i - j < window) | (j < sinks)
    scores = torch.where(close, near, far).masked_fill(~allowed, -torch.inf)
    return torch.softmax(scores, -1) @ expand_heads(own.v, own.h)


@check(
    "pod_proximal_distant",
    beyond="training that adapts the model, needle tests at scale",
)
@torch.no_grad()
def pod() -> Claims:
    """Shared distant scores are one softmax; copied layers are grouped, and share without error."""
    sinks, window, n = 4, 32, 200
    ids = torch.randint(3, 60, (1, n))
    model = llama(4)
    # `llama` says Module, whose parts the type checker takes for tensors.
    inner: torch.nn.ModuleList = model.model.layers  # type: ignore[assignment, union-attr]
    for layer in inner:
        layer.self_attn.q_proj.weight *= 8  # layers of sharp weights look at different keys

    def made(sources: dict[int, int]) -> PoD:
        one = PoD(sinks=sinks, window=window)
        one.take({"sources": sources})
        return one

    look, bare = Passing(), Passing()
    with attach(model, [bare], check=False):
        plain = model(ids).logits
    with attach(model, [look, Shrinking([made({1: 0})], 0.5)], check=False):
        model(ids)
    wanted = shared_by_hand(bare.calls[1], bare.calls[0], sinks, window)
    merged = gap(look.outs[1], wanted)
    brief = model(ids[:, : sinks + window]).logits
    with shrink(model, made({}), keep=0.5, check=False):
        single = gap(model(ids).logits, plain)
    with shrink(model, made({1: 0, 3: 2}), keep=0.5, check=False) as shrunk:
        short = gap(model(ids[:, : sinks + window]).logits, brief)
        model(ids)
        held = [x.memory.nbytes for x in shrunk.stage.layers]
    token = 2 * 16 * 4  # two key heads of 16 channels, four bytes each
    counted = [2 * n * token, (n + sinks + window) * token + 4 * (sinks + window)] * 2

    # Layer 1 is made a copy of layer 0, which adds nothing to the stream: they see the same.
    inner[1].self_attn.load_state_dict(inner[0].self_attn.state_dict())
    inner[1].input_layernorm.load_state_dict(inner[0].input_layernorm.state_dict())
    for x in (inner[0].self_attn.o_proj, inner[0].mlp.down_proj):
        x.weight.zero_()
    with attach(model, [bare], check=False):
        plain = model(ids).logits
    with shrink(model, made({1: 0}), keep=0.5, check=False):
        twin = gap(model(ids).logits, plain)
    rows = torch.stack([weight_matrix(bare.calls[x])[0][0, :, -8:, :160] for x in range(4)])
    likeness = alike((rows / rows.sum(-1, keepdim=True)).double())
    # because: the search's own threshold
    groups = grouped((likeness > 0.9).float().mean(-1), 0.5)
    yield claim("Groups of size one", "difference of a prompt", single).within(
        1e-5, "full attention", because=FLOAT32
    )
    yield claim("context shorter", "difference of a prompt of s + w tokens", short).equals(
        0.0, "full attention, bit for bit"
    )
    yield claim("two identical layers", "difference", twin).within(
        1e-4, "the model", because=FLOAT32
    )
    yield claim("two identical layers", "difference of shared distant scores", merged).within(
        1e-5, "one softmax over the matrix", because=FLOAT32
    )
    yield claim("memory counter", "bytes held", str(held)).equals(
        str(counted), "leaders T + others (s + w) keys, values, positions"
    )
    yield claim("duplicated-layer toy", "groups of the search", str(groups)).equals(
        "{1: 0}", "the twins alone"
    )
