"""One branch off leaves the other; meta tokens stay in sight; decoding keeps a fixed state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.call import Call
from regard.core.result import Result
from regard.layers.hybrid import Hymba, HymbaStack
from regard.layers.stack import Block
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.until_learned import fit_until

DIM, NAMES, VALUES = 48, 32, 16


class _Recall(nn.Module):
    """Two layers that read pairs of a name and a value, and then name the value of a name."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.names, self.values = nn.Embedding(NAMES, DIM), nn.Embedding(VALUES + 1, DIM)
        self.last = nn.Linear(DIM, VALUES)

    def forward(self, names: Tensor, values: Tensor) -> Tensor:
        """Scores [b, values] of the last name."""
        scores: Tensor = self.last(self.mixer(self.names(names) + self.values(values))[:, -1])
        return scores


def _batch(rows: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Draw 16 pairs, and one of their names to recall, whose value is not told again."""
    known = torch.rand(rows, NAMES).argsort(1)[:, :16]
    told = torch.randint(0, VALUES, (rows, 16))
    asked = torch.randint(0, 16, (rows, 1))
    names = torch.cat((known, known.gather(1, asked)), 1)
    return (names, F.pad(told, (0, 1), value=VALUES)), told.gather(1, asked)[:, 0]


def _trained(mixer: nn.Module) -> tuple[_Recall, float]:
    """Train a model on recall, and return it with its accuracy."""
    restart("data")
    model = _Recall(mixer)

    def loss() -> Tensor:
        read, wanted = _batch(32)
        return F.cross_entropy(model(*read), wanted)

    fit_until(model.parameters(), loss, 0.1, 400, 4e-3)
    read, wanted = _batch(1000)
    with torch.no_grad():
        return model, float((model(*read).argmax(-1) == wanted).float().mean())


def _plain() -> nn.Sequential:
    """The blocks of a stack without meta tokens, which see everything."""
    return nn.Sequential(
        *(Block(Hymba(DIM, heads=4, window=None, states=4, owns_meta=False)) for _ in range(2))
    )


def _without_attention() -> nn.Sequential:
    """The same with the share of attention held at zero."""
    blocks = _plain()
    for block in blocks:
        block.mixer.norms[0].weight.requires_grad_(False).zero_()
    return blocks


def _on_first(model: _Recall, first: int) -> tuple[float, float]:
    """Mean weight of later queries on the first real token, and entropy of their rows, nats."""
    seen: list[Tensor] = []

    class Weights(Stage):
        def wants(self, call: Call) -> tuple[str, ...]:
            return ("weights",)

        def see(self, call: Call, result: Result) -> None:
            assert result.weights is not None
            seen.append(result.weights.detach()[:, :, first + 8 :])

    with attach(model, [Weights()], check=False), torch.no_grad():
        model(*_batch(64)[0])
    weights = torch.stack(seen)
    entropy = torch.special.entr(weights).sum(-1).mean()
    return float(weights[..., first].mean()), float(entropy)


@check(
    "hymba",
    beyond="keys shared by pairs of layers, and language models",
)
def hymba() -> Claims:
    """One branch off leaves the other; meta tokens stay in sight; decoding keeps a fixed state."""
    layer, x = Hymba(32, heads=4, window=8, meta=5), torch.randn(2, 60, 32)
    full = torch.cat((layer.meta.expand(2, -1, -1), x), 1)
    alone = {}
    for off, part, norm in ((1, layer.attention, layer.norms[0]), (0, layer.state, layer.norms[1])):
        with torch.no_grad():
            layer.shares.fill_(1.0)
            layer.shares[off] = 0.0
            alone[off] = gap(layer(x), layer.to_out(norm(part(full)[:, 5:])) / 2)
            layer.shares.fill_(1.0)
    memory = layer.memory()
    with torch.no_grad():
        steps = torch.cat([layer(x[:, i : i + 1], memory=memory) for i in range(60)], 1)
    decoded = gap(steps, layer(x))
    # Only attention carries meta tokens far: with the state's share at zero their pull is its own.
    with torch.no_grad():
        layer.shares[1] = 0.0
    (pull,) = torch.autograd.grad(layer(x)[:, 59].square().sum(), layer.meta)
    reaches = float(pull.abs().min())
    y = x.clone().requires_grad_()
    (seen,) = torch.autograd.grad(layer(y)[:, 59].square().sum(), y)
    beyond = float(seen[:, :51].abs().max())
    held = []
    for n in (60, 120):
        memory = layer.memory()
        with torch.no_grad():
            for _ in range(n):
                layer(torch.randn(1, 1, 32), memory=memory)
        held.append(memory.nbytes)
    stack, z = HymbaStack(32, heads=4, layers=4, window=8, meta=5), torch.randn(2, 40, 32)
    kept = stack.memory()
    with torch.no_grad():
        whole = torch.cat([stack(part, memory=kept) for part in z.split(7, 1)], 1)
    by_model = gap(whole, stack(z))
    with_meta, right = _trained(HymbaStack(DIM, heads=4, layers=2, window=64, meta=8, states=4))
    without, right_without = _trained(_plain())
    _, state_alone = _trained(_without_attention())
    (first, entropy), (first_without, entropy_without) = (
        _on_first(with_meta, 8), _on_first(without, 0),
    )  # fmt: skip
    yield claim("beta2=0 gives", "difference, state off", alone[1]).within(
        1e-5, "its attention alone", because=FLOAT32
    )
    yield claim("beta2=0 gives", "difference, attention off", alone[0]).within(
        1e-5, "its state space alone", because=FLOAT32
    )
    yield claim("stepwise decode", "difference", decoded).within(
        1e-5, "the full forward", because=FLOAT32
    )
    yield claim("meta-prefix precompute", "the same, the meta tokens read once", decoded).within(
        1e-5, "the full forward", because=FLOAT32
    )
    yield claim(
        "meta-prefix precompute", "difference of a model that has them once", by_model
    ).within(1e-5, "the full forward", because=FLOAT32)
    yield claim("entropy of attention on the first", "weight on the first real token", first).below(
        first_without, "of the model without meta tokens, trained alike"
    )
    yield claim("entropy of attention on the first", "entropy of rows", entropy).below(
        entropy_without, "of the model without meta tokens, trained alike"
    )
    yield claim("recall task needs", "accuracy with attention heads", right_without).above(
        state_alone,
        "the state space alone, trained alike",
        plus=0.3,
        because="far beyond chance: 16 values, 1,000 questions",
    )
    yield claim("recall task needs", "accuracy with meta tokens too", right).above(
        state_alone,
        "the state space alone, trained alike",
        plus=0.3,
        because="far beyond chance: 16 values, 1,000 questions",
    )
    yield claim("queries far beyond", "least gradient of a meta token", reaches).above(0.0, "none")
    yield claim(
        "queries far beyond", "largest gradient of tokens out of the window", beyond
    ).equals(0.0, "none")
    yield claim("stepwise decode", "bytes at 120 tokens", held[1]).at_most(
        held[0], "at 60", times=1.5, because="a memory that grows would be twice"
    )
