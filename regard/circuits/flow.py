"""Relevance of input tokens through all layers: rollout, flow, and gradients.

Each follows one position of the top layer downward, a row vector at a time, so no matrix of
weights is made: r A is a sweep of `run.reducers.Given`. Only `flow` (maximal flow) needs matrices,
and takes few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import CapabilityError, RuleError, ValueRangeError, fail, nearest, need
from regard.core.heads import expand_heads
from regard.core.method import method
from regard.core.result import Result
from regard.models.attach import attach
from regard.models.site import Site
from regard.models.stage import Stage
from regard.models.weights import closed_weights
from regard.probes.looking import quiet, readings_of, run_on
from regard.probes.reading import Reading
from regard.run.reducers import Given, Reducer
from regard.run.row_blocks import RowBlock
from regard.run.survey import survey_call

if TYPE_CHECKING:
    from rich.table import Table

FLOW_TOKENS = 64


@dataclass(frozen=True)
class Relevance:
    """How much each token of the input counts for one position of the top layer, [n]."""

    by: str
    values: Tensor
    position: int
    words: Sequence[str] = field(default=(), repr=False)
    target: int | None = None

    def top(self, count: int = 5) -> list[tuple[int, str, float]]:
        """Return the tokens that count most: place, word, value."""
        order = self.values.argsort(descending=True)[:count].tolist()
        return [
            (i, self.words[i] if i < len(self.words) else "", float(self.values[i])) for i in order
        ]

    def table(self, count: int = 10) -> Table:
        """Return a rich table of the tokens that count most."""
        rich = need("rich.table", "see", "draws tables")
        table = rich.Table(title=f"What position {self.position} rests on, by {self.by}")
        for column in ("place", "token", "relevance"):
            table.add_column(column, justify="left" if column == "token" else "right")
        for place, word, value in self.top(count):
            table.add_row(str(place), repr(word), f"{value:.4f}")
        return table


class RecordedCalls(Stage):
    """Keep every self-attention call, and what came of it; memory linear in tokens."""

    def __init__(self, where: Any = None, *, graded: bool = False) -> None:
        super().__init__(where)
        self.calls: list[Call] = []
        self.bumps: list[Tensor] = []
        self.graded = graded

    def see(self, call: Call, result: Result) -> None:
        """Keep the call."""
        if not isinstance(call.site, Site) or call.site.kind != "self" or call.n != call.m:
            kind = getattr(call.site, "kind", "unknown")
            fail(
                CapabilityError, "model", f"{kind} attention of {call.n} queries on {call.m} keys",
                "self-attention alone, all tokens at once",
                "choose sites by where=, or look at the encoder alone",
            )  # fmt: skip
        plain = call.replace(q=call.q.detach(), k=call.k.detach(), v=call.v.detach())
        self.calls.append(plain)

    def after(self, call: Call, partial: Result) -> Result:
        """Add zeros whose gradient is that of the output."""
        if not self.graded:
            return partial
        bump = torch.zeros_like(partial.out, requires_grad=True)
        self.bumps.append(bump)
        return partial._replace(out=partial.out + bump)


def given(call: Call, rows: Tensor, make: Callable[..., Reducer] | None = None) -> Tensor:
    """Return the row vector rows [b, n] times the mean over heads of the weights: [b, m]."""
    reducer = Given(call, rows[:, None]) if make is None else make(call, rows[:, None])
    survey_call(call, reducers=[reducer])
    return reducer.found.mean(1)  # type: ignore[attr-defined]


def row_sums(call: Call) -> Tensor:
    """Return what the keys get of each query, mean over heads [b, n]: 1, less what sinks take."""
    sink = survey_call(call, ("sets",), sets={"all": torch.arange(call.m)})
    return sink.named("all").mean(1)


@method(
    "attention_rollout",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.circuits.flow import relevance\n"
    "print(relevance(model, ids, by='rollout').top(3))",
)
def rollout(calls: Sequence[Call], position: int = -1, residual: float = 0.5) -> Tensor:
    """Row `position` of the product of (1 - residual) A_l + residual I, rows summing to 1: [b, n].

    A_l is the mean over heads of layer l, whose inputs are those of `calls`, the lowest first
    (Abnar and Zuidema 2020).
    """
    if not 0 <= residual < 1:
        fail(ValueRangeError, "residual", residual, "a share in [0, 1)", "take 0.5")
    row = _one_hot(calls, position)
    for call in reversed(calls):
        shared = row / ((1 - residual) * row_sums(call) + residual)
        row = residual * shared + (1 - residual) * given(call, shared)
    return row


def flow(calls: Sequence[Call], position: int = -1, limit: int = FLOW_TOKENS) -> Tensor:
    """Maximal flow from `position` at the top to each token of the input [b, n], summing to 1.

    Edges from (l, i) to (l - 1, j) can carry (A_l + I)[i, j] / 2. One maximal flow for each token,
    so few tokens: the whole is exact, by networkx.
    """
    found = maximal_flows(calls, position, limit)
    return found / found.sum(1, keepdim=True)


def maximal_flows(calls: Sequence[Call], position: int = -1, limit: int = FLOW_TOKENS) -> Tensor:
    """Return the same, not shared out: the value of each maximal flow [b, n]."""
    networkx = need("networkx", "see", "finds maximal flows")
    n = calls[0].n
    if n > limit:
        fail(
            ValueRangeError, "inputs", f"{n} tokens", f"at most {limit}: one maximal flow each",
            "take by='rollout' for long inputs, or pass limit=",
        )  # fmt: skip
    start = range(n)[position]
    found = torch.zeros(calls[0].b, n, dtype=torch.float64)
    for b in range(calls[0].b):
        graph = networkx.DiGraph()
        for level, call in enumerate(calls, start=1):
            weights = closed_weights(call, "flow")[b].double().mean(0)
            mixed = weights + torch.eye(n, dtype=torch.float64, device=weights.device)
            mixed = (mixed / mixed.sum(1, keepdim=True)).cpu()
            for i, j in mixed.nonzero().tolist():
                graph.add_edge((level, i), (level - 1, j), capacity=float(mixed[i, j]))
        for j in range(n):
            if (0, j) in graph:
                top = (len(calls), start)
                found[b, j] = networkx.maximum_flow_value(graph, top, (0, j))
    return found


def by_gradient(calls: Sequence[Call], grads: Sequence[Tensor], position: int = -1) -> Tensor:
    """Row `position` of R, where R starts at I and grows by R <- R + Abar R, layer by layer.

    Abar is the mean over heads of the positive part of A times its gradient (Chefer 2021);
    `grads` [b, h, n, e] are those of the outputs, from which that of A[i, j] is g_i . v_j.
    """
    row = _one_hot(calls, position)
    for call, grad in zip(reversed(calls), reversed(grads), strict=True):
        row = row + given(call, row, lambda c, r, g=grad: _Positive(c, r, g))
    return row


class _Positive(Reducer):
    """Sum over queries of rows[i] times the positive part of w_ij (g_i . v_j), [b, h, m]."""

    def __init__(self, call: Call, rows: Tensor, grad: Tensor) -> None:
        self.rows = rows.double().expand(call.b, call.h, call.n)
        self.v, self.grad = expand_heads(call.v, call.h).double(), grad.double()
        self.found = torch.zeros(call.b, call.h, call.m, dtype=torch.float64, device=call.q.device)

    def take(self, block: RowBlock) -> None:
        """Read one block."""
        keys = slice(block.cols.start, min(block.cols.stop, self.found.shape[2]))
        place = (block.b, block.h)
        slope = self.grad[(*place, block.rows)] @ self.v[(*place, keys)].T
        weights = block.weights[:, : keys.stop - keys.start].double()
        rows = self.rows[(*place, block.rows)]
        self.found[(*place, keys)] += rows @ (weights * slope).clamp(min=0)


def last_attention(calls: Sequence[Call], position: int = -1) -> Tensor:
    """Return the last layer's weights at `position`, mean over heads: what people often show."""
    return given(calls[-1], _one_hot(calls, position))


def value_norm(calls: Sequence[Call], position: int = -1) -> Tensor:
    """The last layer's weights times the length of the values, summing to 1 (Kobayashi 2020)."""
    call = calls[-1]
    lengths = expand_heads(call.v, call.h).double().norm(dim=-1)  # [b, h, m]
    reducer = Given(call, _one_hot(calls, position)[:, None])
    survey_call(call, reducers=[reducer])
    moved = (reducer.found * lengths).mean(1)
    return moved / moved.sum(-1, keepdim=True).clamp(min=1e-30)


BY: dict[str, Callable[..., Tensor]] = {
    "attention": last_attention,
    "value_norm": value_norm,
    "rollout": rollout,
    "flow": flow,
    "gradient": by_gradient,
}


def relevance(
    model: Any,
    inputs: Any,
    by: str = "rollout",
    *,
    tokenizer: Any = None,
    position: int = -1,
    target: int | None = None,
    where: Any = None,
) -> Relevance:
    """Return how much one position of the top layer depends on each token.

    `by` is "rollout", "flow", "gradient" (of the logit of `target`, the likeliest token unless
    given), or, of the last layer alone, "attention" or "value_norm". Models of self-attention.
    """
    if by not in BY:
        one = f"one of {', '.join(BY)}"
        fail(RuleError, "by", repr(by), one, nearest(by, BY, "name one of these"))
    reading = readings_of(model, inputs, tokenizer)[0]
    kept = RecordedCalls(where, graded=by == "gradient")
    with quiet(model), torch.set_grad_enabled(by == "gradient"), attach(model, kept, check=False):
        output = run_on(model, _on_device(model, reading))
        n = kept.calls[0].n if kept.calls else 0
        if not -n <= position < n:
            fail(ValueRangeError, "position", position, f"one of {n} tokens", "take -1, the last")
        extra: list[Any] = []
        if by == "gradient":
            target, grads = _gradients(output, kept, position, target)
            extra = [grads]
    _need_one_length(kept.calls)
    values = BY[by](kept.calls, *extra, position=position)
    return Relevance(by, values[0].double().cpu(), range(n)[position], reading.words, target)


def _gradients(
    output: Any, kept: RecordedCalls, position: int, target: int | None
) -> tuple[int, list[Tensor]]:
    """Return gradients of one logit in the outputs of the heads, and which logit it is."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        fail(
            CapabilityError, "model", f"an output of {type(output).__name__}", "logits",
            "take a model with a head, or by='rollout'",
        )  # fmt: skip
    row = logits[0, position] if logits.dim() == 3 else logits[0]
    chosen = int(row.argmax()) if target is None else target
    return chosen, list(torch.autograd.grad(row[chosen], kept.bumps))


def _on_device(model: Any, reading: Reading) -> dict[str, Any]:
    device = next(iter(model.parameters())).device
    return {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in reading.inputs.items()
    }


def _one_hot(calls: Sequence[Call], position: int) -> Tensor:
    if not calls:
        fail(
            RuleError, "calls", "none", "the calls of every layer", "keep them with RecordedCalls()"
        )
    call = calls[0]
    row = torch.zeros(call.b, call.n, dtype=torch.float64, device=call.q.device)
    row[:, position] = 1.0
    return row


def _need_one_length(calls: Sequence[Call]) -> None:
    """Raise unless all layers have one length, so that weights can be multiplied."""
    lengths = {call.n for call in calls}
    if len(lengths) != 1:
        fail(
            CapabilityError, "model", f"layers of {sorted(lengths)} tokens", "one number of tokens",
            "choose the layers of one stage with where=",
        )  # fmt: skip
