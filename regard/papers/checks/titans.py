"""Plain steps are the delta rule; chunks are the loop; what the window lost is recalled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.features import unit
from regard.core.support import Window
from regard.layers.attention import Attention
from regard.layers.memory_context import MemoryAsContext, MemoryAsLayer
from regard.layers.neural_memory import NeuralMemory, Titans
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


def _features(y: Tensor) -> Tensor:
    """Bring queries or keys [h, d] of a memory to length 1."""
    y = y * y.sigmoid()
    return y / y.square().sum(-1, keepdim=True).sqrt()


class _Memory:
    """Follow the paper's equations of the neural memory, token by token."""

    def __init__(self, far: NeuralMemory) -> None:
        self.far, self.tokens = far, list[Tensor]()
        self.memory = self.velocity = torch.zeros(far.heads, far.head_dim, far.head_dim).double()

    def read(self, q: Tensor, memory: Tensor) -> Tensor:
        """What a memory says of a query [h, d]: [dim]."""
        told: Tensor = self.far.to_out(_normed(torch.einsum("hd,hde->he", q, memory)).flatten())
        return told

    def ask(self, x: Tensor, memory: Tensor) -> Tensor:
        """What a memory says of a token [dim], which teaches it nothing."""
        return self.read(_features(self.far.to_q(x).view(self.far.heads, -1)), memory)

    def __call__(self, x: Tensor) -> Tensor:
        """Teach it a token [dim], then read."""
        far, h = self.far, self.far.heads
        self.tokens.append(x)
        token, around = x.clone(), far.near.weight  # [taps, dim], the token itself last
        for back in range(min(len(self.tokens), len(around))):
            token = token + around[-1 - back] * self.tokens[-1 - back]
        q, k, v = (part(token).view(h, -1) for part in (far.to_q, far.to_k, far.to_v))
        q, k = _features(q), _features(k)
        eta, theta, alpha = far.to_rates(x).sigmoid().view(3, h, 1, 1)
        surprise = k[:, :, None] * (v - torch.einsum("hd,hde->he", k, self.memory))[:, None]
        self.velocity = eta * self.velocity + theta * surprise
        self.memory = (1 - alpha) * self.memory + self.velocity
        return self.read(q, self.memory)


def _looked(near: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """Attention of one token [dim] to others [m, dim]: [dim]."""
    h, d = near.heads, near.head_dim
    k, v = (part(seen).view(-1, h, d) for part in (near.to_k, near.to_v))
    scores = torch.einsum("hd,mhd->hm", near.to_q(x).view(h, d), k) / d**0.5
    out: Tensor = near.to_out(torch.einsum("hm,mhe->he", scores.softmax(-1), v).flatten())
    return out


def _gated(layer: Titans, x: Tensor) -> Tensor:
    """Memory as gate, token by token: x [n, dim] to the same. A window is of 4."""
    memory, out = _Memory(layer.far), []
    for t in range(len(x)):
        seen = torch.cat((layer.near.persistent[0], x[max(0, t - 3) : t + 1]))
        a, m = _normed(_looked(layer.near, x[t], seen)), _normed(memory(x[t]))
        out.append(a * (m * m.sigmoid()) + m)
    return torch.stack(out)


def _layered(layer: MemoryAsLayer, x: Tensor) -> Tensor:
    """Memory as a layer, token by token: a window of 4 over what the memory says."""
    memory = _Memory(layer.far)
    told = torch.stack([_normed(memory(token)) for token in x])
    return torch.stack([
        _looked(
            layer.near, told[t], torch.cat((layer.near.persistent[0], told[max(0, t - 3) : t + 1]))
        )
        for t in range(len(x))
    ])  # fmt: skip


def _in_context(layer: MemoryAsContext, x: Tensor) -> Tensor:
    """Memory as context, token by token, in segments."""
    memory, out = _Memory(layer.far), []
    for start in range(0, len(x), layer.segment):
        before, told = memory.memory, list[Tensor]()
        for t in range(start, min(start + layer.segment, len(x))):
            # A memory that was taught nothing tells nothing.
            told.append(memory.ask(x[t], before) if start else torch.zeros_like(x[t]))
            seen = torch.cat((layer.persistent[0], torch.stack(told), x[start : t + 1]))
            y = _looked(layer.near, x[t], seen)
            out.append(_normed(y) * _normed(memory(y)).sigmoid())
    return torch.stack(out)


@check(
    "titans",
    beyond="memories deeper than one linear map",
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
    gated = gap(whole(x)[0], _gated(whole, x[0]))
    layered = MemoryAsLayer(24, heads=3, window=4, persistent=2).double()
    context = MemoryAsContext(24, heads=3, segment=6, persistent=2).double()
    as_layer, as_context = (
        gap(layered(x)[0], _layered(layered, x[0])),
        gap(context(x)[0], _in_context(context, x[0])),
    )
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
    yield claim("Chunked with b=1", "the same, memory as a layer", as_layer).within(
        1e-9, "memory below a window, written out token by token", because=FLOAT64
    )
    yield claim("Chunked with b=1", "the same, memory as context", as_context).within(
        1e-6,
        "memory as context of segments, written out token by token",
        because="float64, and the smallest number that norms add to what they divide by",
    )
    yield claim("Recall of pairs", "bytes of memory after 64 tokens", held[1]).below(
        held[0], "after 8", times=2, because="a memory that grows would be 8 times"
    )
    yield claim("Recall of pairs", "accuracy", recalled["titans"]).above(
        recalled["mha"],
        "sliding-window attention alone, trained alike",
        plus=0.3,
        because="far beyond chance: 16 values, 1,000 questions",
    )
