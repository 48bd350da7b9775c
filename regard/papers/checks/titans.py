"""Plain steps are the delta rule; chunks are the loop; what the window lost is recalled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.features import unit
from regard.core.support import Window
from regard.layers.neural_memory import Titans
from regard.layers.registry import layer as layer_named
from regard.layers.stack import Block
from regard.papers.checks import Claims, check
from regard.papers.claims import CATALOGUE, FLOAT64, claim
from regard.papers.seeding import restart
from regard.papers.shared.measure import gap
from regard.papers.shared.until_learned import fit_until
from regard.run.scanning import scan, scan_momentum


def _recall(name: str) -> float:
    """Accuracy of naming the value of a key that was shown 12 to 14 tokens before."""
    restart()
    given = {"window": 4} if name == "titans" else {"support": Window(4)}
    blocks = nn.ModuleList(
        Block(layer_named(name, 48, heads=4, causal=True, **given)) for _ in "ab"
    )
    names, values = nn.Embedding(32, 48), nn.Embedding(17, 48)
    last = nn.Linear(48, 16)

    def batch(rows: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Draw eight pairs of a name and a value, filler, and a name to recall (16: no value)."""
        known = torch.rand(rows, 16).argsort(1)[:, :8]
        told = torch.randint(0, 16, (rows, 8))
        asked = torch.randint(0, 3, (rows, 1))  # early pairs, long out of the window
        filler = torch.randint(16, 32, (rows, 6))
        name = torch.cat((known, filler, known.gather(1, asked)), 1)
        return (name, F.pad(told, (0, 7), value=16)), told.gather(1, asked)[:, 0]

    def scores(name: Tensor, value: Tensor) -> Tensor:
        x = names(name) + values(value)
        for block in blocks:
            x = block(x)
        answer: Tensor = last(x[:, -1])
        return answer

    def loss() -> Tensor:
        tokens, wanted = batch(64)
        return F.cross_entropy(scores(*tokens), wanted)

    held = [p for part in (blocks, names, values, last) for p in part.parameters()]
    fit_until(held, loss, 0.1, 300, 4e-3)
    tokens, wanted = batch(1000)
    with torch.no_grad():
        return float((scores(*tokens).argmax(-1) == wanted).float().mean())


def _normed(x: Tensor) -> Tensor:
    """Divide by the root mean square, as a norm that was never trained does."""
    return x / x.square().mean(-1, keepdim=True).sqrt()


def _written_out(layer: Titans, x: Tensor) -> Tensor:
    """Follow the paper's equations of memory as gate, token by token: x [1, n, dim] to the same."""
    near, far = layer.near, layer.far
    h, d, out = near.heads, near.head_dim, []
    around = far.near.weight  # [taps, dim], the token itself last
    memory = velocity = x.new_zeros(h, d, d)
    for t in range(x.shape[1]):
        seen = torch.cat((near.persistent[0], x[0, max(0, t - 3) : t + 1]))  # a window of 4
        k, v = (part(seen).view(-1, h, d) for part in (near.to_k, near.to_v))
        scores = torch.einsum("hd,mhd->hm", near.to_q(x[0, t]).view(h, d), k) / d**0.5
        looked = near.to_out(torch.einsum("hm,mhe->he", scores.softmax(-1), v).flatten())
        token = x[0, t].clone()
        for back in range(min(t + 1, len(around))):
            token = token + around[-1 - back] * x[0, t - back]
        q, k, v = (part(token).view(h, d) for part in (far.to_q, far.to_k, far.to_v))
        q, k = ((y * y.sigmoid()) for y in (q, k))
        q, k = (y / y.square().sum(-1, keepdim=True).sqrt() for y in (q, k))
        eta, theta, alpha = far.to_rates(x[0, t]).sigmoid().view(3, h, 1, 1)
        surprise = k[:, :, None] * (v - torch.einsum("hd,hde->he", k, memory))[:, None]
        velocity = eta * velocity + theta * surprise
        memory = (1 - alpha) * memory + velocity
        read = far.to_out(_normed(torch.einsum("hd,hde->he", q, memory)).flatten())
        a, m = _normed(looked), _normed(read)
        out.append(a * (m * m.sigmoid()) + m)
    return torch.stack(out)[None]


@check(
    "titans",
    beyond="memories deeper than one linear map; memory as context or as a layer (MAC, MAL)",
)
def titans() -> Claims:
    """Plain steps are the delta rule; chunks are the loop; what the window lost is recalled."""
    k, v = unit(torch.randn(1, 2, 30, 8)).double(), torch.randn(1, 2, 30, 8).double()
    far = -1e9
    steps, _ = scan_momentum(k, k, v, log_momentum=far, log_decay=0.0, beta=1.0)
    rule, _ = scan(k, k, v, beta=1.0)
    delta, returned = gap(steps, rule), gap(steps, v)
    rates = {
        "log_momentum": F.logsigmoid(torch.randn(1, 2, 30)).double(),
        "log_decay": F.logsigmoid(3 + torch.randn(1, 2, 30)).double(),
        "beta": torch.rand(1, 2, 30).double(),
    }
    q = torch.randn(1, 2, 30, 8).double()
    memory = velocity = torch.zeros(1, 2, 8, 8).double()
    loop = []
    for t in range(30):  # the paper's equations, step by step
        eta, keep = rates["log_momentum"][..., t].exp(), rates["log_decay"][..., t].exp()
        miss = v[:, :, t] - torch.einsum("bhd,bhde->bhe", k[:, :, t], memory)
        step = torch.einsum("bhd,bhe->bhde", k[:, :, t], miss) * rates["beta"][..., t, None, None]
        velocity = eta[..., None, None] * velocity + step
        memory = keep[..., None, None] * memory + velocity
        loop.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], memory))
    wanted = torch.stack(loop, 2)
    chunks = max(gap(scan_momentum(q, k, v, chunk=c, **rates)[0], wanted) for c in (1, 7, 64))
    whole, x = Titans(24, heads=3, window=4, persistent=2).double(), torch.randn(1, 20, 24).double()
    gated = gap(whole(x), _written_out(whole, x))
    held = []
    for n in (8, 64):
        layer = Titans(32, heads=4, window=4)
        kept = layer.memory()
        with torch.no_grad():
            for _ in range(n):
                layer(torch.randn(1, 1, 32), memory=kept)
        held.append(kept.nbytes)
    recalled = {name: _recall(name) for name in ("titans", "mha")}
    yield claim("Linear M, eta=0", "difference from the delta rule", delta).within(
        1e-5, "the delta rule", because=FLOAT64
    )
    yield claim(
        "Linear M, eta=0", "difference of what is read from the last pair", returned
    ).within(1e-5, "its value", because=FLOAT64)
    yield claim(
        "Chunked with b=1", "difference from the token loop, chunks of 1, 7, 64", chunks
    ).within(1e-5, "the paper's equations, step by step", because=CATALOGUE)
    yield claim(
        "Chunked with b=1", "difference of the whole layer from its equations", gated
    ).within(1e-9, "memory as gate, written out token by token", because=FLOAT64)
    yield claim("Recall of pairs", "bytes of memory after 64 tokens", held[1]).below(
        held[0], "after 8", times=2, because="a memory that grows would be 8 times"
    )
    yield claim("Recall of pairs", "accuracy", recalled["titans"]).above(
        recalled["mha"],
        "sliding-window attention alone, trained alike",
        plus=0.3,
        because="far beyond chance: 16 values, 1,000 questions",
    )
