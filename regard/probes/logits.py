"""Heads in terms of tokens: logit attribution, the token lens, answers layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import RuleError, ShapeError, ValueRangeError, fail
from regard.core.method import method
from regard.core.result import Result
from regard.models.residual import Stream, precise
from regard.models.site import Site
from regard.models.stage import Stage
from regard.probes.base import Probe
from regard.probes.registry import register
from regard.probes.scores import Scores
from regard.run.rows import rows_of
from regard.run.runner import run


@dataclass(frozen=True)
class LogitParts:
    """The logit of a token (less that of another), part by part; they sum to `total` [b]."""

    heads: dict[Site, Tensor]  # [b, h]
    biases: dict[Site, Tensor]  # [b]
    rest: dict[Site, Tensor]  # [b]: the MLP of the block
    embedding: Tensor  # [b]
    constant: Tensor  # of the norm and the unembedding, [b]

    @property
    def total(self) -> Tensor:
        """The sum of all parts [b]."""
        parts = [x.sum(1) for x in self.heads.values()]
        return sum([*parts, *self.biases.values(), *self.rest.values()],
                   self.embedding + self.constant)  # fmt: skip

    def scores(self) -> Scores:
        """Contributions of the heads, mean over the batch."""
        return Scores(
            "logit_attribution", "adds to the logit", {s: x.mean(0) for s, x in self.heads.items()},
            "direct", "<head's output, W_U[token] through the final norm, its scale held>",
            low=-torch.inf, high=None,
        )  # fmt: skip


@method(
    "chinchilla_mcq_circuit",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.probes.logits import logit_parts\n"
    "from regard.models.residual import watched\n"
    "print(logit_parts(watched(model, ids), 7, against=8).scores().top(3))",
)
def logit_parts(
    stream: Stream, token: Tensor | int, against: Tensor | int | None = None, row: int = -1
) -> LogitParts:
    """Take the logit of `token` at one row apart; `token` is one id, or one for each of the batch.

    `against` is the id of a rival, or None for the logit alone. Biases of norm and unembedding are
    in `constant`.
    """
    weight, bias = stream.unembedding
    b, n = stream.embedding.shape[:2]
    if not -n <= row < n:
        fail(ValueRangeError, "row", row, f"one of {n} tokens", "take -1, the last")
    norm = stream.frozen([row])

    def chosen(x: Tensor, ids: Tensor | int) -> Tensor:
        ids = torch.as_tensor(ids, device=x.device)
        if ids.dim() > 1 or (ids.dim() == 1 and len(ids) != b):
            fail(
                ShapeError, "token", list(ids.shape), f"one id, or {b} of them",
                "name one token for each of the batch",
            )  # fmt: skip
        return x[ids.expand(b)]

    direction = chosen(weight, token) - (0 if against is None else chosen(weight, against))
    aim = norm.back(direction[:, None])[:, 0]  # [b, D]
    constant = (norm.bias[:, 0] * direction).sum(-1)
    if bias is not None:
        constant = constant + chosen(bias, token)
        constant = constant - (0 if against is None else chosen(bias, against))
    heads, biases, rest = {}, {}, {}
    for layer in stream.layers:
        site = layer.site
        by_head = torch.einsum("hed,bd->bhe", stream.written[site][0], aim)
        heads[site] = (precise(stream.outs[site][:, :, row]) * by_head).sum(-1)
        biases[site] = aim @ stream.bias(site)
        rest[site] = (stream.rest(site)[:, row] * aim).sum(-1)
    embedding = (stream.embedding[:, row] * aim).sum(-1)
    return LogitParts(heads, biases, rest, embedding, constant)


@register("logit_attribution", groups=("circuits",))
class LogitAttribution(Probe):
    """How much a head adds to the logit of the token that comes next, over the mean of all tokens.

    Direct effects alone: <out_h W_O, W_U[next] - mean W_U> through the final norm with its scale
    held. Of the first 512 tokens.
    """

    key, title, high = "logit_attribution", "adds to the next token's logit", None
    causal_only = True
    low = -torch.inf
    chance_free = "it reads what heads write to the logits, which heads without weights do not"
    definitions: ClassVar = {
        "centered": "less the mean over the vocabulary (TransformerLens, centered unembedding)",
        "raw": "the logit itself",
    }

    def __init__(self, where: Any = None, *, definition: str | None = None) -> None:
        super().__init__(where, definition=definition)
        self.stream = Stream()
        self.found: dict[Site, list[Tensor]] = {}

    def begin(self, model: Any, sites: Any) -> None:
        """Watch the residual stream."""
        super().begin(model, sites)
        self.stream = Stream()
        self.stream.begin(model, sites)

    def after(self, call: Call, partial: Result) -> Result:
        """Keep the outputs of the heads."""
        return self.stream.after(call, partial)

    def end(self) -> None:
        """Read the stream of the forward that ended."""
        self.stream.end()
        tokens = self.reading.tokens
        if self.stream.final is None or tokens is None:
            return
        n = self.stream.final.shape[1]
        said = tokens[:, 1 : n + 1].to(self.stream.final.device)
        n = min(n, said.shape[1])
        weight, _ = self.stream.unembedding
        direction = weight[said]
        if self.definition == "centered":
            direction = direction - weight.mean(0)
        aim = self.stream.frozen(slice(0, n)).back(direction)  # [b, n, D]
        real = self.reading.real
        count = torch.ones_like(said, dtype=torch.bool) if real is None else real[:, 1 : n + 1]
        for layer in self.stream.layers:
            site = layer.site
            self.stream.rest(site)  # raises if heads are not added unchanged
            by_head = torch.einsum("hed,bnd->bhne", self.stream.written[site][0], aim)
            added = (precise(self.stream.outs[site][:, :, :n]) * by_head).sum(-1)
            self.tally.add(site, added, count[:, None].to(added.device))


@method(
    "token_lens",
    call="from regard.probes.logits import TokenLens\n"
    "lens = TokenLens(tokens=[3, 4])  # attach; lens.said[site] [b, h, D], lens.logits(site)",
)
class TokenLens(Stage):
    """The contribution of some tokens T to one row, by head: sum over j in T of A[row, j] v_j W_O.

    `said[site]` [b, h, D]. Over a partition of all tokens these sum, with the bias, to the output
    of the layer. `norm="frozen"` decodes with the scale of the true final state, "own" with that
    of the vector itself.
    """

    def __init__(self, tokens: Sequence[int], row: int = -1, where: Any = None) -> None:
        super().__init__(where)
        self.tokens, self.row = list(tokens), row
        self.said: dict[Site, Tensor] = {}
        self.stream = Stream()

    def begin(self, model: Any, sites: Any) -> None:
        """Watch the stream, for norm and unembedding."""
        self.stream = Stream(limit=1 << 30)
        self.stream.begin(model, sites)

    def end(self) -> None:
        """Stop watching."""
        self.stream.end()

    def after(self, call: Call, partial: Result) -> Result:
        """Attend once more, with the values of other tokens left out."""
        row = range(call.n)[self.row]
        keep = torch.zeros(call.m, 1, dtype=call.v.dtype, device=call.v.device)
        keep[self.tokens] = 1.0
        one = rows_of(call.replace(v=call.v * keep), slice(row, row + 1))
        out = precise(run(one).out[:, :, 0])
        self.stream.after(call, partial)
        weight = self.stream.written[call.site][0]
        self.said[call.site] = torch.einsum("bhe,hed->bhd", out, weight).detach()
        return partial

    def logits(self, site: Site, norm: str = "frozen") -> Tensor:
        """Return logits [b, V] of what all heads of a layer bring."""
        if norm not in ("frozen", "own"):
            fail(RuleError, "norm", repr(norm), "'frozen' or 'own'", "pass one of these")
        brought = self.said[site].sum(1)
        weight, _ = self.stream.unembedding
        if norm == "frozen":
            return self.stream.frozen([self.row])(brought[:, None])[:, 0] @ weight.T
        assert self.stream.norm is not None
        with torch.no_grad():
            own: Tensor = self.stream.norm(brought)
        return precise(own) @ weight.T


@dataclass(frozen=True)
class Latent:
    """Answers read at each layer: `guesses` [b, L] among options, `agreement` [b]."""

    guesses: Tensor
    agreement: Tensor
    logits: Tensor  # [b, L, options]


@method(
    "internal_consistency",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.probes.logits import internal_consistency\n"
    "from regard.models.residual import watched\n"
    "print(internal_consistency(watched(model, ids), options=[7, 8]).agreement)",
)
def internal_consistency(
    stream: Stream, options: Sequence[int], row: int = -1, balance: Tensor | None = None
) -> Latent:
    """Read the answer at every layer, and compute how many agree with the last (Xie 2024).

    Latent logits are W_U norm(h_l) at the options' tokens; `balance` [L, options] is taken off (the
    mean over prompts with balanced answers: `latent.logits.mean(0)`).
    """
    weight, bias = stream.unembedding
    assert stream.norm is not None
    states = [stream.left[layer.site][:, row] for layer in stream.layers]
    with torch.no_grad():
        normed = torch.stack([precise(stream.norm(x)) for x in states], 1)  # [b, L, D]
    logits = normed @ weight[list(options)].T
    if bias is not None:
        logits = logits + bias[list(options)]
    return agreement(logits if balance is None else logits - balance)


def agreement(logits: Tensor) -> Latent:
    """Share of layers but the last that guess as the last does; logits [b, L, options]."""
    guesses = logits.argmax(-1)
    same = (guesses[:, :-1] == guesses[:, -1:]).double().mean(1)
    return Latent(guesses, same, logits)


def weighted_vote(answers: Sequence[int], weights: Sequence[float]) -> int:
    """The answer with the largest sum of weights: self-consistency with internal consistency.

    >>> weighted_vote([1, 2, 2], [0.9, 0.3, 0.4])
    1
    """
    votes: dict[int, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        votes[answer] = votes.get(answer, 0.0) + weight
    return max(votes, key=lambda answer: votes[answer])


@method(
    "factual_recall_mechanism",
    call="import regard, torch\n"
    "model = regard.model(['mha', 'mha'], dim=32, heads=4, vocab=50).eval()\n"
    "ids, other = torch.randint(50, (2, 1, 12))\n"
    "from regard.probes.logits import topic_scores\n"
    "from regard.models.residual import watched\n"
    "print(topic_scores(watched(model, ids), topic=7).top(3))",
)
def topic_scores(stream: Stream, topic: Tensor | int, row: int = -1) -> Scores:
    """Return how much each head writes a topic's token: (out W_O through the norm) . W_U[topic]."""
    return logit_parts(stream, topic, None, row).scores()


def mlp_decomposition(rest: Tensor, basis: Mapping[str, Tensor]) -> dict[str, float]:
    """Least squares of MLP outputs [b, D] on named vectors [b, D]: below 0 erases, above amplifies.

    The coefficients are shared by all of the batch.
    """
    columns = torch.stack([x.double().flatten() for x in basis.values()], 1)
    solved = torch.linalg.lstsq(columns, rest.double().flatten()[:, None]).solution[:, 0]
    return dict(zip(basis, solved.tolist(), strict=True))
