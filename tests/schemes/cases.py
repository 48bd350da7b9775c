"""Generated calls that many processes must run as one does; run in processes by test_law.py."""

from __future__ import annotations

import copy
import random
import traceback
from typing import Any

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.rule import Rule
from regard.core.score import Alibi, Dot, RelativeBias, ScoreStep, SoftCap
from regard.core.support import (
    Blocks,
    Causal,
    Everything,
    Neighborhood,
    PerHead,
    PrefixLM,
    Sinks,
    Window,
    documents_from_lengths,
)
from regard.core.weigh import Relu, Sigmoid, Signed, Softmax
from regard.run.runner import run
from regard.schemes import SCHEMES as ALL
from regard.schemes import Contiguous, ShardedKeys, Striped, ZigZag, balanced, peers_of, traffic
from regard.schemes.local_ranks import on_ranks
from regard.schemes.messages import PeerError, Peers

SCHEMES = tuple(ALL)


class Case:
    """One call: tensors of all ranks, the rule, and how it is spread."""

    def __init__(self, seed: int, world: int) -> None:
        pick = random.Random(seed)
        torch.manual_seed(seed)
        self.seed, self.world = seed, world
        self.scheme = SCHEMES[seed % len(SCHEMES)]
        self.b = pick.choice((1, 1, 2))
        self.g = pick.choice((1, 2, 3))
        self.h = self.g * pick.choice((1, 2, 3))
        self.m = pick.choice((1, 3, 17, 40, 64, 97))
        self.d = pick.choice((4, 8))
        self.e = pick.choice((self.d, self.d, 6))
        self.dtype = pick.choice((torch.float32,) * 4 + (torch.bfloat16, torch.float64))
        support: Any = pick.choice((
            Everything(), Causal(), Causal(), Causal() & Window(5),
            Causal() & (Window(8) | Sinks(2)),
            Window(4), Causal() & Blocks(8), PrefixLM(3), "documents", "heads",
            Neighborhood((5, 5), (8, 8)) if self.m == 64 else Window(3, 2),
        ))  # fmt: skip
        if support == "documents":
            cut = pick.randrange(1, self.m) if self.m > 1 else 1
            lengths = [cut, self.m - cut] if self.m > cut else [self.m]
            support = Causal() & documents_from_lengths(lengths)
        if support == "heads":
            half = (self.h + 1) // 2
            support = PerHead([Causal()] * half + [Causal() & Window(4)] * (self.h - half))
        self.learned: list[Tensor] = []
        kind = pick.choice(("plain", "plain", "plain", "alibi", "relative", "cap", "function"))
        score: Any = Dot()
        if kind == "alibi":
            score = Dot() + Alibi.for_heads(self.h)
        elif kind == "relative":
            table = torch.randn(self.h, 2 * 6 + 1, dtype=torch.float64)
            score = Dot() + RelativeBias(self.learn(table))
        elif kind == "cap":
            score = Dot() >> SoftCap(2.0)
        elif kind == "function":
            score = Dot() + ScoreStep(slope)
        weigh: Any = pick.choice((
            Softmax(), Softmax(), Softmax(), Softmax(plus_one=True), "sink", Sigmoid(-1.0),
            Signed(), Relu(2, 0.1),
        ))  # fmt: skip
        if weigh == "sink":
            weigh = Softmax(sink=self.learn(torch.randn(self.h, dtype=torch.float64)))
        self.rule = Rule(support, score, weigh)
        self.layout = pick.choice((
            Contiguous(self.m, world), ZigZag(self.m, world), Striped(self.m, world),
            Striped(self.m, world, block=3), balanced(self.rule, self.m, world),
        ))  # fmt: skip
        self.real = None
        if pick.random() < 0.2:
            self.real = torch.rand(self.b, self.m) < 0.8
        n = pick.choice((1, 2, 5)) if self.scheme == "tree" else self.m
        self.first = self.m - n if n <= self.m else 0
        n = min(n, self.m)
        self.n = n
        make = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(self.dtype)  # noqa: E731
        self.q, self.k = make(self.b, self.h, n, self.d), make(self.b, self.g, self.m, self.d)
        self.v = make(self.b, self.g, self.m, self.e)
        self.d_out, self.d_lse = make(self.b, self.h, n, self.e), make(self.b, self.h, n)

    def learn(self, x: Tensor) -> Tensor:
        made = x.to(torch.float32 if self.dtype == torch.bfloat16 else self.dtype)
        self.learned.append(made.requires_grad_(True))
        return self.learned[-1]

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.scheme} over {self.world} of {self.rule} with {self.layout}, "
            f"b={self.b} h={self.h} g={self.g} n={self.n} m={self.m} d={self.d} e={self.e} "
            f"{self.dtype}{' padded' if self.real is not None else ''}"
        )

    def together(
        self, dtype: torch.dtype, rows: int | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Run it in one process: output, gradients of q, k, v and of what is learned; and lse.

        `rows` are so many queries at a time, whose gradients are summed; None is all at once.
        """
        q, k, v = (x.detach().to(dtype).requires_grad_(True) for x in (self.q, self.k, self.v))
        wide = dtype if dtype != torch.bfloat16 else torch.float32
        learned = [x.detach().to(wide).requires_grad_(True) for x in self.learned]
        rule = self.rule.with_tensors([*self.rule.support.tensors(), *learned_in(self, learned)])
        line = torch.arange(self.m)
        keys = Dense(k, v, None if self.real is None else torch.where(self.real, line, -1))
        forced, found = "reference" if dtype == torch.float64 else None, []
        for some in torch.arange(self.n).split(rows or self.n):
            call = Call(q[:, :, some], keys, rule, self.first + some)
            result = run(call, ("lse",), forced)
            d_out, d_lse = self.d_out[:, :, some], self.d_lse[:, :, some]
            grads = gradients(result.out, result.lse, d_out, d_lse, [q, k, v, *learned])
            found.append((result.out.detach(), result.lse, grads))
        outs, lses, grads = zip(*found, strict=True)
        lse = None if lses[0] is None else torch.cat(lses, 2)
        return [torch.cat(outs, 2), *(sum(x) for x in zip(*grads, strict=True))], lse


def learned_in(case: Case, learned: list[Tensor]) -> list[Tensor]:
    """Put tensors where those that are learned stand among those of score and weigh."""
    held = [*case.rule.score.tensors(), *case.rule.weigh.tensors()]
    place = {id(x): y for x, y in zip(case.learned, learned, strict=True)}
    return [place.get(id(x), x) for x in held]


def slope(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return s + 0.1 * (j - i)


def gradients(
    out: Tensor, lse: Tensor | None, d_out: Tensor, d_lse: Tensor, inputs: list[Tensor]
) -> list[Tensor]:
    loss = (out * d_out.to(out.dtype)).sum()
    if lse is not None:
        there = lse.isfinite()
        loss = loss + (torch.where(there, lse, 0.0) * d_lse.to(lse.dtype)).sum()
    if loss.grad_fn is None:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def spread(case: Case, peers: Peers) -> tuple[list[Tensor], Tensor | None, str, Any]:
    """Run it on this rank: what this rank has of output and gradients."""
    rank, layout = peers.rank, case.layout
    same = case.scheme == "tree"
    mine = (lambda x: x) if same else (lambda x: layout.take(x, rank, 2))
    q = mine(case.q).clone().requires_grad_(True)
    k, v = (layout.take(x, rank, 2).clone().requires_grad_(True) for x in (case.k, case.v))
    keys = ShardedKeys.of(
        k, v, peers, layout=layout, same_queries=same, real=case.real, scheme=case.scheme
    )
    at = torch.arange(case.first, case.first + case.n) if same else None
    with traffic() as sent:
        result = run(Call(q, keys, case.rule, at), ("lse",))
        forward = sent.sent
        grads = gradients(
            result.out, result.lse, mine(case.d_out), mine(case.d_lse), [q, k, v, *case.learned]
        )
    if not same:  # as for any parameter: a rank has the gradient of its own queries
        grads[3:] = [peers.total(x, "sum") for x in grads[3:]]
    scheme = executor(result.executor)
    call = Call(q, keys, case.rule, at)
    formula = scheme.bytes_sent(call, keys)[rank]
    back = None
    if hasattr(scheme, "bytes_sent_back"):
        back = scheme.bytes_sent_back(call, keys)[rank]
    counted = {
        "forward": forward,
        "formula": formula,
        "back": sent.sent - forward,
        "backward": back,
    }
    return [result.out.detach(), *grads], result.lse, result.executor, counted


def executor(name: str) -> Any:
    from regard.run.plan import EXECUTORS

    return EXECUTORS[name]


def check(case: Case, peers: Peers) -> list[str]:
    """Compare what this rank has with what one process has; say what differs."""
    exact, exact_lse = case.together(torch.float64)
    # In float64 one process is the truth itself: what it loses is what another order changes.
    one, one_lse = case.together(case.dtype, rows=3 if case.dtype == torch.float64 else None)
    got, lse, name, counted = spread(case, peers)
    rank, layout, same = peers.rank, case.layout, case.scheme == "tree"
    wrong = [] if name == case.scheme else [f"ran by {name}"]
    if (lse is None) != (exact_lse is None):
        return [*wrong, "lse is there, or is not"]
    names = ["out", "dq", "dk", "dv", *(f"learned {i}" for i in range(len(case.learned)))]
    if lse is not None:
        names, got, exact, one = (
            [*names, "lse"], [*got, lse.detach()], [*exact, exact_lse.detach()],
            [*one, one_lse.detach()],
        )  # fmt: skip
    for what, x, true, single in zip(names, got, exact, one, strict=True):
        if what in ("dk", "dv") or (what in ("out", "dq", "lse") and not same):
            true, single = layout.take(true, rank, 2), layout.take(single, rank, 2)
        x, single = x.double(), single.double()
        if not torch.equal(x == -torch.inf, true == -torch.inf):
            wrong.append(f"{what}: other rows are empty")
            continue
        x, true, single = (torch.where(y == -torch.inf, 0.0, y) for y in (x, true, single))
        size = float(true.abs().max()) if true.numel() else 0.0
        floor = torch.finfo(case.dtype).eps * (1.0 + size)
        if what in ("lse", *(f"learned {i}" for i in range(9))):
            floor = (
                max(floor, torch.finfo(torch.float32).eps * (1 + size))
                if (case.dtype == torch.bfloat16)
                else floor
            )
        own = float((single - true).abs().max()) if true.numel() else 0.0
        off = float((x - true).abs().max()) if true.numel() else 0.0
        if not off <= 3 * own + 4 * floor:
            wrong.append(f"{what}: off by {off:.2e}, one process by {own:.2e}, floor {floor:.2e}")
    if counted["forward"] != counted["formula"]:
        wrong.append(f"sent {counted['forward']} bytes, the formula says {counted['formula']}")
    if counted["backward"] is not None and counted["back"] != counted["backward"]:
        wrong.append(f"sent {counted['back']} back, the formula says {counted['backward']}")
    return wrong


def run_cases(first: int, count: int) -> dict[str, Any]:
    """Run cases of seeds in a row; say which differ, and how many ran by each scheme."""
    peers = peers_of(None)
    wrong: list[str] = []
    ran: dict[str, int] = {}
    for seed in range(first, first + count):
        case = Case(seed, peers.world)
        try:
            found = check(case, peers)
        except PeerError:
            raise
        except Exception as error:  # the same on every rank: the next case goes on
            found = ["".join(traceback.format_exception(error)[-3:])]
        ran[case.scheme] = ran.get(case.scheme, 0) + 1
        wrong += [f"{case}: {x}" for x in found]
    return {"wrong": wrong[:20], "many": len(wrong), "ran": ran}


def run_in_threads(seeds: range, world: int) -> list[str]:
    """Run cases on ranks that are threads of this process; say which differ.

    Each rank has tensors of its own, as processes have: threads that share a leaf with a gradient
    may wait for each other for ever in PyTorch 2.13 (its lock against Python's).
    """
    wrong: list[str] = []
    for seed in seeds:
        case = Case(seed, world)
        own = [copy.deepcopy(case) for _ in range(world)]
        for found in on_ranks(world, lambda peers, own=own: check(own[peers.rank], peers)):
            wrong += [f"{case}: {x}" for x in found]
    return wrong
