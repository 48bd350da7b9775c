"""The exact law of each edit, read from the weights themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from regard import controls as c
from regard.controls.context import EditContext
from regard.controls.edit import apply
from regard.controls.prompt import Prompt
from regard.controls.sink_calibration import LaterSinks
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.score.dense import DenseBias
from regard.core.support import Causal
from regard.models.site import Site
from regard.run.runner import run

A, B = c.TokenPositions((2, 5)), c.TokenPositions((1, 7))


def a_call(seed: int = 0, m: int = 9) -> Call:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, h, m, 8, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    return Call.of(3 * q, k, v, Rule(Causal()), site=Site(0, "self", "a", 4, 2, 8))


def weights(call: Call, *edits: Any) -> tuple[Tensor, Tensor]:
    """Weights [b, h, n, m] without and with edits."""
    new, _ = apply(edits, EditContext(call, Prompt(torch.zeros(2, call.n).long())))
    pair = [run(x, ("weights",)).weights for x in (call, new)]
    assert pair[0] is not None
    assert pair[1] is not None
    return pair[0], pair[1]


def near(a: Tensor, b: Tensor | float) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), atol=1e-10)


def test_a_bias_multiplies_odds_and_keeps_ratios() -> None:
    old, new = weights(a_call(), c.AddBias(A, 2.0))
    mine = [2, 5]
    sees = old[..., mine].sum(-1) > 0
    other = [0, 1, 3, 4, 6, 7, 8]
    odds = [x[..., mine].sum(-1) / x[..., other].sum(-1).clamp(min=1e-300) for x in (old, new)]
    rows = sees & (old[..., other].sum(-1) > 0)
    assert near(odds[1][rows] / odds[0][rows], torch.tensor(2.0).double().exp())
    assert near(new[..., -1, 2] / new[..., -1, 5], old[..., -1, 2] / old[..., -1, 5])


def test_forbidden_keys_get_exactly_nothing() -> None:
    old, new = weights(a_call(), c.Forbid(A))
    assert bool((new[..., [2, 5]] == 0).all())
    rest = old[..., -1, :].clone()
    rest[..., [2, 5]] = 0
    assert near(new[..., -1, :], rest / rest.sum(-1, keepdim=True))
    old, new = weights(a_call(), c.Forbid(c.TokenPositions((0,))))
    assert near(new[:, :, 0, 0], 1.0)  # nothing else to attend to


def test_only_some_keys_are_left() -> None:
    _, new = weights(a_call(), c.only_keys(A))
    assert bool((new[:, :, 5:, [0, 1, 3, 4, 6, 7, 8]] == 0).all())


def test_strengths_are_as_exact_as_the_call() -> None:
    """0.7 is no number of float32: rows and steps have it as wide as scores are."""
    for strength in (0.7, c.PerRow((0.7, 0.7)), c.PerStep((0.7,))):
        old, new = weights(a_call(), c.AddBias(A, strength))
        gained = (new[:, :, -1, 2] / new[:, :, -1, 0]) / (old[:, :, -1, 2] / old[:, :, -1, 0])
        assert near(gained, torch.tensor(0.7, dtype=torch.float64).exp())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_moved_mass_is_what_was_said(share: float) -> None:
    old, new = weights(a_call(), c.MoveMass(A, B, share))
    for n in range(9):
        lost, gained = (x[:, :, n, [2, 5]].sum(-1) for x in (old, new))
        to = [x[:, :, n, [1, 7]].sum(-1) for x in (old, new)]
        moves = (lost > 0) & (to[0] > 0)
        assert near(gained, torch.where(moves, (1 - share) * lost, lost))
        assert near(to[1], torch.where(moves, to[0] + share * lost, to[0]))
    rest = [0, 3, 4, 6, 8]
    assert near(new[..., rest], old[..., rest])
    assert near(new.sum(-1), 1.0)
    assert near(new[..., -1, 1] * old[..., -1, 7], new[..., -1, 7] * old[..., -1, 1])


@pytest.mark.parametrize("k", [1.0, 0.5, 0.0])
def test_a_share_to_a_power(k: float) -> None:
    old, new = weights(a_call(), c.ShareToPower(A, k))
    p, found = (x[..., [2, 5]].sum(-1) for x in (old, new))
    mixed = (p > 0) & (p < 1)
    assert near(found, torch.where(mixed, p**k, p))
    assert near(new.sum(-1), 1.0)
    if k == 1.0:
        assert torch.equal(old, new)


def test_a_share_that_is_set_and_sets_that_are_even() -> None:
    old, new = weights(a_call(), c.SetShare(A, 0.25))
    assert near(new[:, :, 2:, [2, 5]].sum(-1), 0.25)
    one, two = c.TokenPositions((1,)), c.TokenPositions((4,))
    old, new = weights(a_call(), c.EvenOut((one, two)))
    assert near(new[:, :, 4:, 1], new[:, :, 4:, 4])
    assert near(new[:, :, 4:, 1], (old[:, :, 4:, 1] + old[:, :, 4:, 4]) / 2)
    assert near(new[:, :, :4], old[:, :, :4])


def test_temperature_multiplies_log_odds() -> None:
    old, new = weights(a_call(), c.ScaleScores(0.5))
    a, b = (x[:, :, -1].log() for x in (old, new))
    assert near(b[..., 0] - b[..., 3], 0.5 * (a[..., 0] - a[..., 3]))


def test_raised_scores_are_those_of_the_formula() -> None:
    call = a_call()
    _, new = weights(call, c.RaiseScores(A, 0.7))
    k = call.k.repeat_interleave(2, 1)
    s = (call.q @ k.transpose(-1, -2)) * 8**-0.5
    s[..., [2, 5]] += 0.7 * s[..., [2, 5]].abs()
    s = s.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    assert near(new, s.softmax(-1))


def test_extra_keys_share_one_softmax_and_the_same_again_change_nothing() -> None:
    call = a_call().replace(rule=Rule())
    at = EditContext(call, Prompt())
    twice = c.ExtraKeys(c.GivenKeys(call.k[:1], call.v[:1]))
    same = call.replace(q=call.q[:1].expand(2, -1, -1, -1), k=call.k[:1].expand(2, -1, -1, -1),
                        v=call.v[:1].expand(2, -1, -1, -1))  # fmt: skip
    plain = run(same).out
    assert near(run(twice.before(EditContext(same, Prompt()))).out, plain)
    assert near(run(c.ExtraKeys(c.OtherRows()).before(EditContext(same, Prompt()))).out, plain)
    louder = c.ExtraKeys(c.OtherRows(), 2.0).before(at)
    found = run(louder, ("weights",)).weights
    assert found is not None
    quiet = run(c.ExtraKeys(c.OtherRows(), 0.0).before(at), ("weights",)).weights
    assert quiet is not None
    odds = [x[..., 9:].sum(-1) / x[..., :9].sum(-1) for x in (quiet, found)]
    assert near(odds[1] / odds[0], torch.tensor(2.0).double().exp())
    replaced = run(c.ReplaceKeys(c.OtherRows()).before(at), ("weights",)).weights
    assert replaced is not None
    assert bool((replaced[..., :9] == 0).all())


@pytest.mark.parametrize("first", [c.Forbid(A), c.RaiseScores(A, 0.7), c.AddBias(A, 1.0)])
def test_what_was_said_of_keys_says_nothing_of_those_that_come_later(first: Any) -> None:
    """An edit of single keys, then more keys: as if these had come first."""
    call = a_call().replace(rule=Rule())
    extra = c.ExtraKeys(c.OtherRows(), 0.5)
    outs = []
    for order in ((first, extra), (extra, first)):
        new, _ = apply(order, EditContext(call, Prompt()))
        outs.append(run(new).out)
    assert near(outs[0], outs[1])


def test_a_branch_is_mixed_linearly() -> None:
    call = a_call()
    at = EditContext(call, Prompt(torch.zeros(2, 9).long()))
    plain = run(call)
    branch = run(apply((c.Forbid(A),), at)[0]).out
    for s in (-0.5, 0.25, 1.0):
        out = c.MixBranch(c.Forbid(A), s).after(at, plain).out
        assert near(out, plain.out + s * (branch - plain.out))
    assert c.MixBranch(c.Forbid(A), 0.0).after(at, plain) is plain


def test_a_direction_is_removed() -> None:
    call = a_call()
    at, way = EditContext(call, Prompt()), torch.randn(8)
    out = c.RemoveDirection("out", way).after(at, run(call)).out
    assert float((out @ way.double()).abs().max()) < 1e-6


def test_rows_that_sit_between_rows_of_a_bias_are_found() -> None:
    """Rows are looked at one by one in a call whose rule has a row for each query."""
    from regard.controls.moved_weight import rows_at

    call = a_call()
    bias = DenseBias(torch.randn(1, 1, 9, 9, dtype=torch.float64))
    call = call.replace(rule=Rule(Causal(), Dot() + bias))
    whole = run(call, ("weights",)).weights
    some = run(rows_at(call, torch.tensor([[1, 8], [0, 4]])), ("weights",)).weights
    assert whole is not None
    assert some is not None
    assert near(some[0], whole[0, :, [1, 8]])
    assert near(some[1], whole[1, :, [0, 4]])


def test_a_planted_sink_is_found_and_the_first_token_is_none() -> None:
    call = a_call(m=20)
    k = call.k.clone()
    k[:, :, [0, 7]] = 0
    call = call.replace(k=k, rule=Rule(Causal(), Dot() + DenseBias(_column(20, {0: 6.0, 7: 6.0}))))
    found = LaterSinks(5.0).mask(EditContext(call, Prompt(torch.zeros(2, 20).long())))
    assert found.nonzero()[:, 2].unique().tolist() == [7]


def _column(m: int, columns: dict[int, float]) -> Tensor:
    bias = torch.zeros(1, 1, 1, m, dtype=torch.float64)
    for j, x in columns.items():
        bias[..., j] = x
    return bias
