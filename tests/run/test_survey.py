"""A survey equals sums over the full matrix, adds up over calls, and keeps memory linear."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

import regard
from regard.core.call import Call
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.support import Causal, Sinks, Window
from regard.core.survey import WANTS, octave
from regard.run.reducers import Reducer
from regard.run.reference import weight_matrix
from tests.strategies import calls

TILE, NEAR, TOP = 16, 5, 3


def naive(call: Call, sets: torch.Tensor, sinks: list[int]) -> dict[str, torch.Tensor]:
    """Every statistic from the full matrix."""
    weights, lse = weight_matrix(call)
    found = {} if lse is None else {"lse": lse}
    share = torch.ones_like(weights[..., 0])
    if call.rule.weigh.has_sink:
        ones = Partial(torch.ones_like(weights[..., :1]), lse)
        share = call.rule.weigh.apply_sink(ones).out[..., 0]
        share = torch.where(lse == -torch.inf, 0.0, share)
    w = weights.abs() * share[..., None]
    p = w / w.sum(-1, keepdim=True).clamp(min=1e-300)
    at = call.at()
    apart = (at.j - at.i).expand_as(w)
    met = call.allowed(at).expand_as(w)
    found["entropy"] = -torch.special.xlogy(p, p).sum(-1)
    found["row_max"] = w.amax(-1)
    found["apart"] = (w * apart.abs()).sum(-1)
    found["top_weights"] = w.topk(min(TOP, call.m), -1).values
    found["received"], found["seen"] = w.sum(2), met.sum(2).to(w.dtype)
    found["sets"] = w @ sets.to(w.dtype)
    found["sinks"] = found["received"][..., sinks] / found["seen"][..., sinks].clamp(min=1)
    length = call.v.norm(dim=-1).repeat_interleave(call.h // call.g, 1)[:, :, None]
    for name, x in (("", w), ("_by_value", w * length)):
        tiled = pad(x, (0, -call.m % TILE, 0, -call.n % TILE))
        tiled = tiled.unflatten(2, (-1, TILE)).unflatten(4, (-1, TILE))
        found[f"tile_sum{name}"], found[f"tile_max{name}"] = tiled.sum((3, 5)), tiled.amax((3, 5))
        near = [(x * (apart == o)).sum((2, 3)) for o in range(-NEAR, NEAR + 1)]
        found[f"distance_near{name}"] = torch.stack(near, -1)
        octaves = max(call.n, call.m, 2).bit_length() + 1
        far = [
            (
                x
                * ((octave(apart.abs().clamp(min=1)) == o) & (apart.sign() == side))
                * (apart.abs() > NEAR)
            ).sum((2, 3))
            for side in (-1, 1)
            for o in range(octaves)
        ]
        found[f"distance_far{name}"] = torch.stack(far, -1).unflatten(-1, (2, octaves))
        found[f"received{name}"], found[f"sets{name}"] = x.sum(2), x @ sets.to(w.dtype)
    return found


@given(calls(most=40))
def test_every_statistic_equals_the_full_matrix(call):
    call = call.replace(**{x: getattr(call, x).detach() for x in "qkv"})
    chosen = torch.rand(call.m, 2) < 0.5
    sinks = [0, call.m - 1]
    want = [w for w in WANTS if w != "lse" or not call.rule.weigh.sums]
    with torch.no_grad():
        report = regard.survey(
            call.q, call.k, call.v, call.rule, want, tile=TILE, near=NEAR, top=TOP, sinks=sinks,
            sets={"a": chosen[:, 0], "b": chosen[:, 1].nonzero().flatten()},
        )  # fmt: skip
        expected = naive(call, chosen, sinks)
    for name, x in expected.items():
        got = getattr(report, name)
        assert not got.isnan().any(), name
        torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    best = report.row_max_key
    assert ((best >= 0) == (report.row_max > 0)).all()


@given(st.integers(0, 2**31 - 1), st.integers(1, 3), st.integers(1, 2))
def test_surveys_of_later_queries_add_up(seed, first, second):
    torch.manual_seed(seed)
    n = (first + second + 1) * TILE
    q, k = (
        torch.randn(1, 2, n, 4, dtype=torch.float64),
        torch.randn(1, 2, n, 4, dtype=torch.float64),
    )
    rule = Rule(Causal() & (Window(20) | Sinks(2)))
    want = ("entropy", "received", "tiles", "distance", "lse", "max")

    def part(start, stop):  # as a prefill or decode step sees it: no key beyond its last query
        return regard.survey(
            q[:, :, start:stop], k[:, :, :stop], None, rule.shift(start), want, tile=TILE
        )

    cuts = [0, first * TILE, (first + second) * TILE, n]
    a, b, c = (part(*cut) for cut in itertools.pairwise(cuts))
    whole = regard.survey(q, k, None, rule, want, tile=TILE)
    for joined in (a.then(b).then(c), a.then(b.then(c))):
        for name, x in whole.found.items():
            got = joined.found[name]
            got = got[..., : x.shape[-1]] if name == "distance_far" else got
            torch.testing.assert_close(got, x)


def test_perfect_heads_have_known_answers():
    n = 64
    q = torch.zeros(1, 1, n, n)
    eye = torch.eye(n)[None, None]
    uniform = regard.survey(q, eye, None, want=("entropy", "received"))
    torch.testing.assert_close(uniform.entropy, torch.full((1, 1, n), n).log())
    identity = regard.survey(1e4 * eye, eye, None, want=("entropy", "distance", "max"))
    assert identity.entropy.abs().max() < 1e-6
    torch.testing.assert_close(identity.distance_near[0, 0, 32], torch.tensor(float(n)))
    assert torch.equal(identity.row_max_key[0, 0], torch.arange(n))
    ones = torch.ones(1, 1, n, n)
    sink = regard.survey(ones, 1e4 * (torch.arange(n) == 0)[:, None] * ones, None, Causal(),
                         want=("sinks", "tiles"), sinks=[0])  # fmt: skip
    torch.testing.assert_close(sink.sinks, torch.ones(1, 1, 1))
    assert float(sink.tile_max[0, 0, 0, 0]) == 1.0


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that anything made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // 4)
        return out


def test_nothing_of_the_size_of_the_matrix_is_made():
    n = 4096
    q = torch.randn(1, 2, n, 8)
    with Largest() as seen:
        regard.survey(q, q, None, Causal(), want=("entropy", "received", "tiles"))
    assert seen.elements < n * n / 16


def test_a_reducer_of_ones_own_shares_the_pass(seed):
    class Diagonal(Reducer):
        def __init__(self):
            self.mass = 0.0

        def take(self, block):
            here = block.weights[block.j == block.i[:, None]]
            self.mass += float(here.sum())

    own, done = Diagonal(), []
    q = torch.randn(1, 2, 33, 8)
    regard.survey(
        q, q, q, Causal(), ("entropy",), reducers=[own], progress=lambda *x: done.append(x)
    )
    weights, _ = weight_matrix(Call.of(q, q, q, Rule(Causal())))
    assert abs(own.mass - float(weights.diagonal(dim1=2, dim2=3).sum())) < 1e-4
    assert done[-1][0] == done[-1][1]


def test_entropy_does_not_lose_to_a_large_offset(seed):
    q, k = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 40, 8)
    high = torch.cat([q, torch.full((1, 1, 40, 1), 100.0)], -1)
    ones = torch.cat([k, torch.full((1, 1, 40, 1), 300.0)], -1)  # every score is 10,000 higher
    shifted = regard.survey(high, ones, None, Causal(), "entropy").entropy
    exact = regard.survey(high.double(), ones.double(), None, Causal(), "entropy").entropy
    # A float32 score of 10,000 is itself rounded by 1e-3; its entropy must lose no more than that.
    torch.testing.assert_close(shifted.double(), exact, atol=5e-3, rtol=0)
    same = regard.survey(q + 0, k, None, regard.Rule(Causal()), "entropy").entropy
    naive = weight_matrix(Call.of(q, k, k, Rule(Causal())))[0]
    want = -torch.special.xlogy(naive, naive).sum(-1)
    torch.testing.assert_close(same, want, atol=1e-5, rtol=0)
