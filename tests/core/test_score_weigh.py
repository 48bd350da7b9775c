"""Scores are what their papers say, one pair at a time, and folding changes none of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.heads import expand_heads
from regard.core.score import (
    Additive,
    Alibi,
    At,
    Cope,
    DistanceBias,
    Dot,
    Gaussian,
    General,
    GroupBias,
    KeyWeights,
    LatticeBias,
    LowRankBias,
    RelativeBias,
    ScoreStep,
    ShawBias,
    SoftCap,
    T5Bias,
    Temperature,
    folded,
)

seeds = st.integers(0, 2**31 - 1)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def places(b: int, h: int, n: int, m: int) -> At:
    row, col = torch.arange(n).view(-1, 1), torch.arange(m)
    return At(torch.arange(b).view(-1, 1, 1, 1), torch.arange(h).view(-1, 1, 1), row, col, row, col)


def scored(score, q, k, allowed=None):
    """Scores of q [b, h, n, d] with k [b, g, m, d] without folding anything."""
    keys = expand_heads(k, q.shape[1])
    at = places(q.shape[0], q.shape[1], q.shape[2], k.shape[2])._replace(allowed=allowed)
    return score.bind(q, keys)(score.match.between(q, keys), at)


# Matches


def test_matches_equal_their_formulas_pair_by_pair(seed):
    q, k = normal(1, 2, 3, 4), normal(1, 2, 5, 4)
    w, a, b, c = normal(2, 4, 4), normal(2, 4, 3), normal(2, 4, 3), normal(2, 3)
    cases = {
        Dot(): lambda x, y, h: x @ y / 2,
        Dot(0.3): lambda x, y, h: 0.3 * (x @ y),
        General(w): lambda x, y, h: (x @ w[h] @ y) / 2,
        Additive(a, b, c): lambda x, y, h: torch.tanh(x @ a[h] + y @ b[h]) @ c[h],
        Gaussian(1.5): lambda x, y, h: -((x - y) ** 2).sum() / (2 * 1.5**2),
    }
    for score, formula in cases.items():
        found = scored(score, q, k)
        for h in range(2):
            for i in range(3):
                for j in range(5):
                    expected = formula(q[0, h, i], k[0, h, j], h)
                    torch.testing.assert_close(found[0, h, i, j], expected)


# Steps


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 64), (8, 20)])
def test_t5_buckets_are_those_of_transformers(bidirectional, buckets, farthest):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    apart = torch.arange(-300, 301)
    theirs = t5.T5Attention._relative_position_bucket(apart, bidirectional, buckets, farthest)
    ours = T5Bias(torch.zeros(1, buckets), bidirectional, farthest).bucket(apart)
    assert torch.equal(ours, theirs)


def test_alibi_slopes_are_the_published_ones():
    eight = [2.0**-x for x in range(1, 9)]
    assert Alibi.for_heads(8).slopes.tolist() == eight
    between = [2.0**-x for x in (0.5, 1.5, 2.5, 3.5)]
    torch.testing.assert_close(Alibi.for_heads(12).slopes, torch.tensor(eight + between))


def test_shaw_equals_the_table_of_all_pairs(seed):
    q, k, table = normal(2, 2, 6, 4), normal(2, 2, 9, 4), normal(2, 7, 4)
    apart = (torch.arange(9) - torch.arange(6)[:, None]).clamp(-3, 3) + 3
    expected = torch.einsum("bhnd,hnmd->bhnm", q, table[:, apart]) / 2
    found = scored(Dot() >> ShawBias(table), q, k) - scored(Dot(), q, k)
    torch.testing.assert_close(found, expected)


def test_shaw_is_the_skew_of_music_transformer_on_the_past(seed):
    n, d = 7, 4
    q, k, past = normal(1, 2, n, d), normal(1, 2, n, d), normal(2, n, d)  # past[r]: r - (n - 1)
    table = torch.cat([past, normal(2, n - 1, d)], dim=1)
    met = q @ past.transpose(-1, -2)
    skewed = torch.nn.functional.pad(met, (1, 0)).view(1, 2, n + 1, n)[:, :, 1:] / 2
    found = scored(Dot() >> ShawBias(table), q, k) - scored(Dot(), q, k)
    seen = torch.ones(n, n).tril().bool()
    torch.testing.assert_close(found[..., seen], skewed[..., seen])


def test_cope_equals_counting_gates_one_by_one(seed):
    n, d, last = 6, 4, 3
    q, k, table = normal(1, 2, n, d), normal(1, 2, n, d), normal(2, last + 1, d)
    seen = torch.ones(n, n).tril().bool()
    found = scored(Dot() >> Cope(table), q, k, seen)
    plain = scored(Dot(), q, k)
    for h in range(2):
        for i in range(n):
            for j in range(i + 1):
                position = min(float(plain[0, h, i, j : i + 1].sigmoid().sum()), last)
                low = int(position)
                high, share = min(low + 1, last), position - low
                vector = (1 - share) * table[h, low] + share * table[h, high]
                expected = plain[0, h, i, j] + q[0, h, i] @ vector
                torch.testing.assert_close(found[0, h, i, j], expected)


def test_steps_of_place_equal_their_formulas_pair_by_pair(seed):
    n, m, h = 6, 8, 2
    slopes, width, near = normal(h), torch.rand(h, dtype=torch.float64) + 1, normal(h, 5)
    flat, groups, edit = normal(h, 3, 5), torch.randint(0, 3, (m,)), normal(h, 3, 3)
    rows, cols, weight = normal(1, h, n), normal(1, 1, m), normal(1, h, m)
    u, v = normal(1, h, n, 2), normal(1, 1, m, 2)

    def on_lattice(x, i, j):  # a lattice of 2 x 4
        down, across = j // 4 - i // 4, j % 4 - i % 4
        return max(-1, min(1, down)) + 1, max(-2, min(2, across)) + 2

    cases = {
        SoftCap(1.5): lambda s, x, i, j: 1.5 * torch.tanh(s / 1.5),
        Alibi(slopes): lambda s, x, i, j: s - slopes[x] * abs(i - j),
        DistanceBias(width): lambda s, x, i, j: s - (i - j) ** 2 / (2 * width[x] ** 2),
        RelativeBias(near): lambda s, x, i, j: s + near[x, max(-2, min(2, j - i)) + 2],
        LatticeBias(flat, (2, 4)): lambda s, x, i, j: s + flat[(x, *on_lattice(x, i, j))],
        GroupBias(groups, edit): lambda s, x, i, j: s + edit[x, groups[i], groups[j]],
        LowRankBias(u, v): lambda s, x, i, j: s + u[0, x, i] @ v[0, 0, j],
        KeyWeights(weight): lambda s, x, i, j: s + weight[0, x, j],
        Temperature(rows, cols): lambda s, x, i, j: s * rows[0, x, i] * cols[0, 0, j],
        ScoreStep(lambda s, b, h, i, j: s * (1 + h) - i + 2 * j): (
            lambda s, x, i, j: s * (1 + x) - i + 2 * j
        ),
    }
    q, k = normal(1, h, n, 4), normal(1, h, m, 4)
    plain = scored(Dot(), q, k)
    for step, formula in cases.items():
        found = scored(Dot() >> step, q, k)
        for x in range(h):
            for i in range(n):
                for j in range(m):
                    expected = formula(plain[0, x, i, j], x, i, j)
                    torch.testing.assert_close(found[0, x, i, j], expected)


@st.composite
def folding_scores(draw, b, h, g, n, m, d):
    match = draw(st.sampled_from([Dot(), Dot(0.7), Gaussian(1.5), General(normal(h, d, d))]))
    heads, own = draw(st.sampled_from([1, h])), draw(st.sampled_from([1, h]))
    steps = [
        LowRankBias(normal(1, heads, n, 2), normal(b, own, m, 2)),
        KeyWeights(normal(b, own, m)),
        Temperature(query=normal(b, heads, n)),
        Temperature(key=normal(1, own, m)),
        SoftCap(3.0),
    ]
    for x in draw(st.lists(st.integers(0, len(steps) - 1), max_size=4)):
        match = match >> steps[x]
    return match


@given(st.data(), seeds)
def test_folded_scores_equal_unfolded(data, seed):
    torch.manual_seed(seed)
    b, g, share = (data.draw(st.integers(1, 2)) for _ in range(3))
    n, m, d = (data.draw(st.integers(1, 6)) for _ in range(3))
    q, k = normal(b, g * share, n, d), normal(b, g, m, d)
    score = data.draw(folding_scores(b, g * share, g, n, m, d))
    query, key, _scale, left = folded(score, q, k)
    assert key.shape[:3] == k.shape[:3]
    found = scored(left, query, key)
    torch.testing.assert_close(found, scored(score, q, k))


def test_what_can_fold_is_folded_whole(seed):
    q, k = normal(1, 4, 5, 3), normal(1, 2, 6, 3)
    score = (
        Dot()
        >> Temperature(query=normal(1, 4, 5))
        >> LowRankBias(normal(1, 4, 5, 2), normal(1, 1, 6, 2))
        >> KeyWeights(normal(1, 1, 6))
    )
    assert folded(score, q, k)[3].steps == ()
