"""Edge attribution: which heads feed which, by gradients between two inputs.

Edge attribution patching with integrated gradients (Hanna 2024): an edge from a writer to a reader
scores (writer_clean - writer_corrupt) . mean over steps of dm / d(what the reader reads).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.circuits.patching import Metric
from regard.core.call import Call
from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.models.attach import attach, hook_of
from regard.models.residual import ResidualBlock, Stream, embedding_of, layers_of
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.looking import quiet

LOGITS = "logits"


@dataclass(frozen=True)
class Node:
    """A writer or a reader: a head (of q, k or v, where it reads), an MLP, the ends."""

    name: str
    depth: float
    part: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.part}" if self.part else self.name


@dataclass(frozen=True)
class Edges:
    """Scores of edges (writer, reader), and the metric on both inputs."""

    scores: dict[tuple[Node, Node], float]
    clean: float
    corrupt: float

    def circuit(self, count: int) -> dict[tuple[Node, Node], float]:
        """Return the `count` largest edges by size, less those that lead nowhere."""
        ranked = sorted(self.scores.items(), key=lambda edge: -abs(edge[1]))
        kept = dict(ranked[:count])
        while True:
            writers = {writer.name for writer, _ in kept}
            dead = [(w, r) for w, r in kept if r.name != LOGITS and r.name not in writers]
            if not dead:
                return kept
            for edge in dead:
                del kept[edge]

    def heads(self, count: int) -> set[str]:
        """Return names of the heads in the circuit of so many edges."""
        names = {node.name for edge in self.circuit(count) for node in edge}
        return {name for name in names if "H" in name}

    def into(self, name: str) -> float:
        """Sum over all edges into a node."""
        return sum(x for (_, reader), x in self.scores.items() if reader.name == name)


class _Branches(Stage):
    """Add zeros that require a gradient to each branch that reads the residual stream."""

    def __init__(self, layers: list[ResidualBlock], other: Tensor, share: float) -> None:
        super().__init__()
        self.layers, self.other, self.share = layers, other, share
        self.read: dict[tuple[int, str], Tensor] = {}
        self.calls: dict[Site, Call] = {}
        self.last: Tensor | None = None
        self._attended: set[int] = set()
        self._handles: list[Any] = []

    def begin(self, model: Any, sites: Any) -> None:
        """Register hooks on embedding, norms and the last block."""
        table = embedding_of(model)
        self._handles.append(table.register_forward_hook(self._lean))
        for place, layer in enumerate(self.layers):
            attends = model.get_submodule(layer.site.module)
            inside = {m for part in (attends, *layer.rest) for m in part.modules()}
            for module in layer.block.modules():
                if "norm" in type(module).__name__.lower() and module not in inside:
                    self._handles.append(module.register_forward_pre_hook(self._branch(place)))
        self._handles.append(self.layers[-1].block.register_forward_hook(self._end))

    def end(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()

    def before(self, call: Call) -> Call:
        """Keep q, k and v, expanded so that each query head has its own keys and values."""
        k, v = expand_heads(call.k, call.h), expand_heads(call.v, call.h)
        call = call.replace(k=k, v=v)
        place = next(i for i, x in enumerate(self.layers) if x.site == call.site)
        self._attended.add(place)
        self.calls[call.site] = call
        return call

    def _lean(self, module: Any, args: Any, output: Tensor) -> Tensor:
        with torch.no_grad():
            way = torch.nn.functional.embedding(self.other, module.weight) - output
        return output + self.share * way

    def _branch(self, place: int) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            reader = "mlp" if place in self._attended else "attention"
            bump = torch.zeros_like(args[0], requires_grad=True)
            self.read[place, reader] = bump
            return (args[0] + bump, *args[1:])

        return hook

    def _end(self, module: nn.Module, args: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        self.last = torch.zeros_like(state, requires_grad=True)
        return (state + self.last, *output[1:]) if isinstance(output, tuple) else state + self.last

    def slopes(self, value: Tensor) -> dict[Node, Tensor]:
        """Return gradients of the metric in what each reader takes of the stream [b, n, D]."""
        assert self.last is not None
        found = {Node(LOGITS, float("inf")): _grad(value, self.last)}
        for place, layer in enumerate(self.layers):
            name = f"L{layer.site.layer}"
            if (place, "mlp") in self.read:
                found[Node(f"{name} MLP", place + 0.5)] = _grad(value, self.read[place, "mlp"])
            bump, call = self.read.get((place, "attention")), self.calls[layer.site]
            if bump is None:
                fail(
                    CapabilityError, layer.site.module, "attention that no norm of its block feeds",
                    "pre-norm attention", "use a pre-norm model",
                )  # fmt: skip
            for part in ("q", "k", "v"):
                made = getattr(call, part)
                slope = _grad(value, made)
                for head in range(call.h):
                    kept = torch.zeros_like(slope)
                    kept[:, head] = slope[:, head]
                    node = Node(f"{name}H{head}", float(place), part)
                    found[node] = torch.autograd.grad(made, bump, kept, retain_graph=True)[0]
        return {node: x.detach() for node, x in found.items()}


def _grad(value: Tensor, at: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(value, at, retain_graph=True)
    return grad


@method(
    "thinking_sparks",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.circuits.edges import edge_attribution\n"
    "from regard.circuits.patching import logit_difference\n"
    "edges = edge_attribution(model, ids, other, logit_difference(7, 8), steps=2)\n"
    "print(edges.heads(20))",
)
def edge_attribution(
    model: nn.Module, clean: Tensor, corrupt: Tensor, metric: Metric, *, steps: int = 5
) -> Edges:
    """Score every edge between embedding, heads, MLPs and logits of a causal language model.

    Inputs are ids [b, n] of one shape. Heads read by q, k and v, each an edge of its own. Gradients
    are a mean over `steps` points on the way from the corrupted to the clean embedding.
    """
    if steps < 1 or clean.shape != corrupt.shape:
        fail(
            ValueRangeError, "clean, corrupt, steps",
            (list(clean.shape), list(corrupt.shape), steps), "ids of one shape, and some steps",
            "corrupt tokens without moving others",
        )  # fmt: skip
    with quiet(model):
        layers = layers_of(model, hook_of(model)[1])
        good, m_good = _streamed(model, clean, metric)
        bad, m_bad = _streamed(model, corrupt, metric)
        slopes: dict[Node, Tensor] = {}
        for step in range(1, steps + 1):
            branches = _Branches(layers, clean, step / steps)
            with attach(model, branches, check=False), torch.enable_grad():
                found = branches.slopes(metric(model(corrupt)))
            for node, grad in found.items():
                slopes[node] = slopes.get(node, torch.zeros_like(grad)) + grad / steps
    scores = {
        (writer, reader): float((change * slope).sum())
        for writer, change in _writers(good, bad).items()
        for reader, slope in slopes.items()
        if reader.depth > writer.depth
    }
    return Edges(scores, m_good, m_bad)


def _streamed(model: nn.Module, ids: Tensor, metric: Metric) -> tuple[Stream, float]:
    stream = Stream.of(model, limit=ids.shape[1])
    with stream, torch.no_grad():
        value = float(metric(model(ids)))
    return stream, value


def _writers(good: Stream, bad: Stream) -> dict[Node, Tensor]:
    """Return changes of what each node writes [b, n, D]."""
    found = {Node("embedding", -1.0): good.embedding - bad.embedding}
    for place, layer in enumerate(good.layers):
        change = good.heads(layer.site) - bad.heads(layer.site)
        for head in range(change.shape[1]):
            found[Node(f"L{layer.site.layer}H{head}", float(place))] = change[:, head]
        rest = good.rest(layer.site) - bad.rest(layer.site)
        found[Node(f"L{layer.site.layer} MLP", place + 0.5)] = rest
    return found


def emergent(before: Collection[str], after: Collection[str]) -> dict[str, set[str]]:
    """Return heads that emerged, vanished and were kept between two circuits.

    >>> sorted(emergent({"L0H1"}, {"L0H1", "L1H0"})["emerged"])
    ['L1H0']
    """
    one, two = set(before), set(after)
    return {"emerged": two - one, "vanished": one - two, "kept": one & two}
