"""Attention lenses: the output of one head as tokens, by a map trained for that head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import ValueRangeError, fail
from regard.core.method import method
from regard.models.residual import Stream, precise, watched
from regard.models.site import Site
from regard.probes.looking import Progress


class Lens(nn.Module):
    """An affine map from a head's output in the residual stream [..., D] to logits [..., V]."""

    def __init__(self, unembedding: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(unembedding.clone())
        self.bias = nn.Parameter(unembedding.new_zeros(len(unembedding)))

    def forward(self, said: Tensor) -> Tensor:
        """Return logits of a head's output."""
        return F.linear(said, self.weight, self.bias)


@dataclass
class Lenses:
    """The lenses of some heads, and how far from the model's own prediction each is (KL, nats)."""

    lenses: dict[tuple[Site, int], Lens]
    loss: dict[tuple[Site, int], float]
    curve: dict[tuple[Site, int], list[float]] = field(default_factory=dict, repr=False)

    def read(
        self, stream: Stream, head: tuple[Site, int], row: int = -1, top: int = 5
    ) -> list[int]:
        """Return the top tokens of a head's output at a row, by its lens."""
        said = stream.heads(head[0])[0, head[1], row]
        with torch.no_grad():
            ids: list[int] = self.lenses[head](said).topk(top).indices.tolist()
        return ids


def logit_lens(stream: Stream, head: tuple[Site, int], row: int = -1, top: int = 5) -> list[int]:
    """Return the top tokens of a head's output by the model's own unembedding, untrained."""
    said = stream.heads(head[0])[0, head[1], row]
    ids: list[int] = (stream.unembedding[0] @ said).topk(top).indices.tolist()
    return ids


@method(
    "attention_lens",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.models.attach import hook_of\n"
    "from regard.circuits.lenses import train_lenses\n"
    "head = (hook_of(model)[1][1], 0)\n"
    "lenses = train_lenses(model, ids, [head], steps=2)",
)
def train_lenses(
    model: nn.Module, texts: Tensor | Sequence[Tensor], heads: Sequence[tuple[Site, int]], *,
    steps: int = 200, batch: int = 256, rate: float = 1e-3, seed: int = 0,
    progress: Progress | None = None,
) -> Lenses:  # fmt: skip
    """Train a lens for each head: minimize KL(model's prediction || lens of the head's output).

    `texts` are ids [b, n] (or several such); every position of them is an example. Each map begins
    as the unembedding. The model stays as it is; outputs are gathered once.
    """
    many = [texts] if isinstance(texts, Tensor) else list(texts)
    if not many or not heads or steps < 1:
        fail(
            ValueRangeError, "texts, heads, steps", (len(many), len(heads), steps),
            "some texts, some heads, some steps", "pass ids [b, n] and pairs (site, head)",
        )  # fmt: skip
    said: dict[tuple[Site, int], list[Tensor]] = {head: [] for head in heads}
    wanted = []
    for ids in many:
        stream = watched(model, ids, limit=ids.shape[1])
        weight, bias = stream.unembedding
        assert stream.norm is not None
        assert stream.final is not None
        with torch.no_grad():
            logits = F.linear(precise(stream.norm(stream.final)), weight, bias)
        wanted.append(logits.log_softmax(-1).flatten(0, 1))
        for site, number in heads:
            said[site, number].append(stream.heads(site)[:, number].flatten(0, 1))
    target = torch.cat(wanted)
    found = Lenses({}, {})
    for done, head in enumerate(heads, start=1):
        x = torch.cat(said[head])
        lens, curve = _fit(x, target, weight, steps, batch, rate, seed)
        with torch.no_grad():
            found.loss[head] = float(_divergence(lens(x), target))
        found.lenses[head], found.curve[head] = lens, curve
        if progress is not None:
            progress("lenses", done, len(heads))
    return found


def _fit(
    x: Tensor, target: Tensor, weight: Tensor, steps: int, batch: int, rate: float, seed: int
) -> tuple[Lens, list[float]]:
    draw = torch.Generator().manual_seed(seed)
    lens = Lens(weight)
    adam = torch.optim.Adam(lens.parameters(), rate)
    curve = []
    with torch.enable_grad():
        for _ in range(steps):
            some = torch.randint(len(x), (min(batch, len(x)),), generator=draw)
            loss = _divergence(lens(x[some]), target[some])
            adam.zero_grad()
            loss.backward()
            adam.step()
            curve.append(float(loss.detach()))
    return lens.requires_grad_(False), curve


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")
