"""Gates keep the induction heads of a trained toy; at 1 and 0 they are full and streaming."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.layers.attention import Attention
from regard.layers.building import model as build_model
from regard.memories import Kept, Ring, Split
from regard.models.attach import attach
from regard.models.site import Sites
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.small_trainer import fit
from regard.policies.streaming_heads import Gates, near


def _copier(layers: int = 2) -> torch.nn.Module:
    """Train layers to go on with random tokens shown twice."""
    restart()
    tiny = build_model(
        [Attention(64, heads=4, causal=True, position="rotary") for _ in range(layers)],
        vocab=40, dim=64, tied=False,
    )  # fmt: skip
    fit(tiny.parameters(), lambda: _loss(tiny, _repeated(32)), 400, 6e-3)
    return tiny


def _repeated(rows: int, period: int | None = None, n: int = 64) -> tuple[Tensor, int]:
    period = int(torch.randint(8, 29, ())) if period is None else period
    return torch.randint(0, 40, (rows, period)).repeat(1, n // period + 1)[:, :n], period


def _loss(tiny: torch.nn.Module, shown: tuple[Tensor, int]) -> Tensor:
    tokens, period = shown
    said = tiny(tokens)[:, period:-1]
    return torch.nn.functional.cross_entropy(said.flatten(0, 1), tokens[:, period + 1 :].flatten())


class _Windowed(Gates):
    """Streaming masks in every head, run once."""

    def __init__(self, sinks: int, recent: int) -> None:
        super().__init__(Sites(), sinks, recent)

    def before(self, call: Call) -> Call:
        support = call.rule.support & near(self.recent, self.sinks)
        return call.replace(rule=call.rule.replace(support=support))

    # Returns what it is given.
    def after(self, call: Call, partial: object) -> object:  # type: ignore[override]
        return partial


@check("duo_attention", beyond="models of 7B and more")
def duo() -> Claims:
    """Gates keep the induction heads of a trained toy; at 1 and 0 they are full and streaming."""
    tiny = _copier()
    with attach(tiny, check=False) as bare:
        sites = Sites(bare.sites)
    restart()
    shown = _repeated(16, 25)
    plain = tiny(shown[0]).detach()

    def gated(start: float) -> Gates:
        return Gates(sites, sinks=2, recent=6, start=start)

    with torch.no_grad():
        with attach(tiny, [gated(1.0)], check=False):
            ones = gap(tiny(shown[0]), plain)
        with attach(tiny, [gated(0.0)], check=False):
            zeros = tiny(shown[0])
        window = _Windowed(2, 6)
        with attach(tiny, [window], check=False):
            streaming = gap(zeros, tiny(shown[0]))

    learned = gated(1.0)
    parameters = list(learned.gates.values())
    for p in tiny.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(70):
        tokens, period = _repeated(8, 25)
        full = tiny(tokens)[:, period:].detach()
        with attach(tiny, [learned], check=False):
            ours = tiny(tokens)[:, period:]
        loss = (ours - full).square().mean() / full.square().mean()
        optimizer.zero_grad()
        (loss + 0.1 * torch.cat(parameters).mean()).backward()
        optimizer.step()
        for p in parameters:
            p.data.clamp_(0, 1)
    gates = torch.stack([p.detach() for p in parameters])
    keep = gates > 0.5  # because: half open

    def with_roles(full_heads: Tensor) -> float:
        made = gated(0.0)
        for p, row in zip(made.gates.values(), full_heads, strict=True):
            p.data.copy_(row.float())
        with attach(tiny, [made], check=False), torch.no_grad():
            return float(_loss(tiny, shown))

    chosen, swapped, whole = with_roles(keep), with_roles(~keep), float(_loss(tiny, shown))

    n, d, sinks, recent = 8192, 16, 4, 128
    x = torch.randn(1, 4, n, d)
    memory = Split([((1,), Kept()), ((0, 2, 3), Ring(recent, sinks))])
    memory.extend(x, x)
    memory.settle()
    counted = memory.nbytes / (2 * 4 * d)
    # The ring holds positions in 4 bytes each for its three heads together.
    wanted = n + 3 * (sinks + recent) + (sinks + recent) * 4 / (2 * 4 * d)
    yield claim("All gates 1", "difference", ones).within(1e-5, "the full model", because=FLOAT32)
    yield claim("all 0: equal", "difference", streaming).within(
        1e-5, "streaming masks", because=FLOAT32
    )
    yield claim("On a 2-layer toy", "heads kept of 8", int(keep.sum())).below(
        8, "all", because="it drops others"
    )
    yield claim("On a 2-layer toy", "heads kept in the first layer", int(keep[0].sum())).equals(
        0, "none: induction heads are in the second"
    )
    yield claim("On a 2-layer toy", "loss with the kept heads alone", chosen).below(
        whole, "the full model's", times=2, plus=0.2, because="near it: the loss is close to zero"
    )
    yield claim("On a 2-layer toy", "loss with the others alone", swapped).above(
        chosen, "with the kept heads alone", times=10, because="what is dropped does not copy"
    )
    yield claim("On a 2-layer toy", "keys held at 8,192 tokens", counted).within(
        1,
        "r T + (1 - r)(sinks + recent), and the ring's positions",
        value=wanted,
        because="bytes are told by key and head",
    )
