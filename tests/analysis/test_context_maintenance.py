"""Lag profiles equal those of the matrix, know planted heads; the recall model knows its limits."""

import pytest
import torch

import regard
from regard.analysis.context_maintenance import fit_recall, recalled
from regard.core.call import Call
from regard.core.errors import CapabilityError, ShapeError, ValueRangeError
from regard.models.engine import Engine
from regard.models.site import Site
from regard.models.weights import closed_weights
from regard.probes.lags import LagProfile, said_by_lag, study_list

CAUSAL = regard.Rule(regard.Causal())
ITEMS, REACH = 14, 4
N = 1 + 2 * ITEMS
READING = study_list(60, ITEMS, rows=2, first=0)


def looked(call):
    probe = LagProfile(REACH)
    probe.show(READING)
    place = Site(0, module="attn", heads=call.h, kv_heads=call.g)
    Engine([probe]).run(call.replace(site=place))
    return probe.told().values[place], probe.profiles[place], probe.places[place]


def pointing(keys):
    q = 1e4 * torch.eye(N, dtype=torch.float64)[torch.tensor(keys)][None, None]
    k = torch.eye(N, dtype=torch.float64)[None, None]
    return Call.of(q, k, k, CAUSAL)


def test_profiles_are_those_of_the_matrix():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, N, 8, dtype=torch.float64) for h in (4, 2, 2))
    call = Call.of(2 * q, k, v, CAUSAL)
    weights = closed_weights(call, "test")
    wanted = torch.zeros(4, 2 * REACH + 1).double()
    for i in range(REACH, ITEMS - REACH):
        for lag in range(-REACH, REACH + 1):
            wanted[:, lag + REACH] += weights[:, :, 1 + ITEMS + i, 1 + i + lag].sum(0)
    wanted = wanted / wanted.sum(1, keepdim=True)
    asymmetry, profile, places = looked(call)
    assert torch.allclose(profile, wanted, atol=1e-6)
    forward = wanted[:, REACH + 1 :].sum(1) - wanted[:, :REACH].sum(1)
    assert torch.allclose(asymmetry, forward, atol=1e-6)
    by_place = weights[:, :, 1 + ITEMS :, 1 : 1 + ITEMS].mean((0, 2))
    assert torch.allclose(places, by_place, atol=1e-6)


@pytest.mark.parametrize("lag", [-2, 0, 1, 3])
def test_a_planted_head_has_all_its_weight_at_its_lag(lag):
    keys = [i if i < 1 + ITEMS else min(i - ITEMS + lag, i) for i in range(N)]
    asymmetry, profile, _ = looked(pointing(keys))
    assert profile[0].tolist() == pytest.approx([float(x == lag) for x in range(-REACH, REACH + 1)])
    assert float(asymmetry[0]) == pytest.approx((lag > 0) - (lag < 0))


def test_a_uniform_head_is_flat():
    _, profile, places = looked(Call.of(*(torch.zeros(1, 1, N, 4).double(),) * 3, CAUSAL))
    assert torch.allclose(profile, torch.full_like(profile, 1 / (2 * REACH + 1)))
    assert torch.allclose(places, places[:, :1].expand_as(places))


def test_lists_are_shown_twice_and_hold_no_token_twice():
    tokens = READING.tokens[:, 1:]
    assert torch.equal(tokens[:, :ITEMS], tokens[:, ITEMS:])
    assert all(len(set(row[:ITEMS])) == ITEMS for row in tokens.tolist())


def test_what_is_said_by_lag_is_counted_one_by_one():
    torch.manual_seed(1)
    tokens, logits = READING.tokens, torch.randn(2, N, 60)
    wanted = torch.zeros(3)
    for b in range(2):
        for i in range(1, ITEMS - 1):
            among = logits[b, 1 + ITEMS + i, tokens[b, 1 : 1 + ITEMS]].softmax(0)
            wanted += torch.stack([among[i - 1], among[i], among[i + 1]])
    found = said_by_lag(logits, tokens, ITEMS, reach=1)
    assert torch.allclose(found, wanted / (2 * (ITEMS - 2)), atol=1e-6)


def slow_recall(beta_enc, beta_rec, gamma, sharpness, items, reach):
    """The model, item by item, with lists of numbers and the two matrices."""
    rho = (1 - beta_enc**2) ** 0.5
    own = torch.eye(items + 1).double()
    contexts = [own[0]]
    for i in range(items):
        contexts.append(rho * contexts[-1] + beta_enc * own[i + 1])
    to_item = sum(torch.outer(own[j + 1], contexts[j]) for j in range(items))  # M_TF
    to_context = (1 - gamma) * torch.eye(items + 1).double() + gamma * sum(
        torch.outer(contexts[j], own[j + 1]) for j in range(items)
    )
    total = torch.zeros(2 * reach + 1).double()
    for cue in range(reach, items - reach):
        back = to_context @ own[cue + 1]
        back = back / back.norm()
        old = contexts[-1]
        c = float(old @ back)
        kept = (1 + beta_rec**2 * (c * c - 1)) ** 0.5 - beta_rec * c
        now = kept * old + beta_rec * back
        assert float(now.norm()) == pytest.approx(1.0)
        p = (sharpness * (to_item @ now)[1:]).softmax(0)
        total += p[cue - reach : cue + reach + 1]
    return total / total.sum()


@pytest.mark.parametrize(
    "given", [(0.6, 0.8, 0.3, 8.0), (0.3, 0.4, 0.9, 3.0), (0.9, 1.0, 0.0, 20.0)]
)
def test_recall_is_the_model_written_out_item_by_item(given):
    # M_FT adds what was there before to what was learned: (1 - gamma) I + gamma sum t e^T.
    found = recalled(*(torch.tensor(x).double() for x in given), items=15, reach=3)
    assert torch.allclose(found, slow_recall(*given, 15, 3), atol=1e-9)


def test_recall_goes_forward_without_gamma_and_both_ways_with_it():
    one = torch.tensor(1.0).double()
    ahead = recalled(0.7 * one, one, 0 * one, 8 * one, items=40, reach=5)
    assert int(ahead.argmax()) == 6
    assert torch.allclose(ahead[:6], ahead[:1].expand(6), rtol=1e-6)  # behind: as by chance
    assert (ahead[6:].diff() < 0).all()
    both = recalled(0.7 * one, one, one, 8 * one, items=60, reach=5)
    assert torch.allclose(both, both.flip(0), rtol=2e-2)


def test_a_made_profile_is_fitted_back():
    given = torch.tensor([0.5, 0.9, 0.1, 6.0]).double()
    made = recalled(*given, items=30, reach=5)
    found = fit_recall(made, items=30)
    assert found.distance < 1e-6
    back = torch.tensor([found.beta_enc, found.beta_rec, found.gamma, found.sharpness]).double()
    assert torch.allclose(back, given, rtol=0.05)


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: study_list(20, 50), ValueRangeError, "items"),
        (lambda: LagProfile(0), ValueRangeError, "reach"),
        (lambda: fit_recall(torch.ones(4)), ShapeError, "odd"),
        (lambda: fit_recall(torch.ones(9), items=6), ValueRangeError, "items"),
        (lambda: Engine([LagProfile()]).run(pointing([0] * N)), None, ""),
    ],
)
def test_bad_questions_are_answered_clearly(ask, error, says):
    if error is None:
        probe = LagProfile()
        place = Site(0, module="attn", heads=1, kv_heads=1)
        Engine([probe]).run(pointing([0] * N).replace(site=place))
        with pytest.raises(CapabilityError, match="shown twice"):
            probe.told()
        return
    with pytest.raises(error, match=says):
        ask()
