"""Generated rules and calls: every support, score and weigh, in odd and empty shapes."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.score import (
    Alibi,
    DistanceBias,
    Dot,
    Gaussian,
    General,
    GroupBias,
    KeyWeights,
    LatticeBias,
    LowRankBias,
    RelativeBias,
    ShawBias,
    SoftCap,
    T5Bias,
    Temperature,
)
from regard.core.support import (
    Attribute,
    Blocks,
    Causal,
    ChosenKeys,
    Dilated,
    Documents,
    Everything,
    Kinds,
    Neighborhood,
    Padding,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sinks,
    Strided,
    Support,
    Tiles,
    Where,
    Window,
)
from regard.core.weigh import Laplace, Relu, Sigmoid, Signed, Softmax


def _alternating(b, h, i, j):
    return (i * 3 + j * 5 + h) % 4 != 0


def lattices(n: int) -> list[tuple[int, ...]]:
    """Shapes of 1 to 3 axes that hold n positions exactly."""
    found: list[tuple[int, ...]] = [(n,)]
    for a in range(2, n + 1):
        if n % a == 0:
            found.append((a, n // a))
            found += [(a, c, n // a // c) for c in range(2, n // a + 1) if (n // a) % c == 0]
    return found


@st.composite
def neighborhoods(draw, n: int) -> Neighborhood:
    lattice = draw(st.sampled_from(lattices(n)))
    dilation = tuple(draw(st.integers(1, max(1, min(3, s)))) for s in lattice)
    kernel = tuple(
        draw(st.integers(1, max(1, min(7, s // d)))) for s, d in zip(lattice, dilation, strict=True)
    )
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    causal = tuple(draw(st.booleans()) for _ in lattice)
    return Neighborhood(kernel, lattice, dilation, stride, causal)


@st.composite
def leaves(draw, b: int, h: int, n: int, m: int) -> Support:
    """One support of any kind, for positions below n and m."""
    size = max(n, m)
    few = st.integers(1, max(1, size))
    kind = draw(st.integers(0, 17))
    if kind == 0:
        return Everything()
    if kind in (1, 2):
        return Causal()
    if kind == 3:
        return Window(draw(few), draw(st.none() | few))
    if kind == 4:
        return Sinks(draw(few))
    if kind == 5:
        return Dilated(draw(st.integers(1, 5)))
    if kind == 6:
        return Strided(draw(st.integers(1, 5)), draw(st.integers(0, 3)))
    if kind == 7:
        return Blocks(draw(few), draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    if kind == 8:
        return draw(neighborhoods(size))
    if kind == 9:
        rows = draw(st.sampled_from([1, b]))
        return Documents(torch.randint(0, 4, (rows, size)).sort().values)
    if kind == 10:
        test = draw(st.sampled_from(["same", "different", "not after", "before"]))
        return Attribute(torch.randint(0, 4, (size,)), torch.randint(0, 4, (size,)), test)
    if kind == 11:
        return Kinds(torch.randint(0, 3, (size,)), torch.rand(3, 3) < 0.6)
    if kind == 12:
        lengths = torch.randint(0, size + 1, (b,))
        return Padding.from_lengths(lengths, size, draw(st.sampled_from(["left", "right"])))
    if kind == 13:
        return PrefixLM(torch.randint(0, size + 1, (draw(st.sampled_from([1, b])),)))
    if kind == 14 and size > 2:
        cut = draw(st.integers(0, size - 2))
        return SharedPrefix(cut, (1, size - cut - 1))
    if kind == 15:
        side = draw(st.sampled_from([4, 16, 32]))
        rows, heads = draw(st.sampled_from([1, b])), draw(st.sampled_from([1, h]))
        return Tiles(torch.rand(rows, heads, -(-n // side), -(-m // side)) < 0.5, side)
    if kind == 16:
        rows = draw(st.sampled_from([1, n]))
        return ChosenKeys(torch.randint(-1, m, (1, draw(st.sampled_from([1, h])), rows, 3)))
    return Where(_alternating)


@st.composite
def supports(draw, b: int, h: int, n: int, m: int) -> Support:
    """A leaf, or a composition of a few."""
    support = draw(leaves(b, h, n, m))
    for _ in range(draw(st.integers(0, 2))):
        other = draw(leaves(b, h, n, m))
        how = draw(st.integers(0, 3))
        if how == 0:
            support = support & other
        elif how == 1:
            support = support | other
        elif how == 2:
            support = support & ~other
        elif support.extent()[1] in (1, h) and h > 1:
            support = PerHead(tuple(support if x % 2 else other for x in range(h)))
            support = support if support.extent()[0] in (1, b) else other
    return support


def table(*shape: int, learned: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(learned)


@st.composite
def steps(draw, b: int, h: int, n: int, m: int, d: int, learned: bool):
    heads = draw(st.sampled_from([1, h]))
    makers = [
        lambda: SoftCap(2.0),
        lambda: Alibi(table(heads, learned=learned)),
        lambda: DistanceBias(torch.rand(heads, dtype=torch.float64) * 9 + 2),
        lambda: RelativeBias(table(heads, 9, learned=learned)),
        lambda: T5Bias(table(heads, 8, learned=learned), draw(st.booleans()), 20),
        lambda: LowRankBias(table(1, heads, n, 2, learned=learned), table(b, 1, m, 2)),
        lambda: KeyWeights(table(1, 1, m, learned=learned)),
        lambda: Temperature(query=table(1, heads, n).abs() + 0.2, key=table(1, 1, m).abs() + 0.2),
        lambda: ShawBias(table(heads, 7, d, learned=learned)),
        lambda: GroupBias(torch.randint(0, 3, (max(n, m),)), table(heads, 3, 3, learned=learned)),
        lambda: LatticeBias(table(heads, 5, learned=learned), (max(n, m),)),
    ]
    return [draw(st.sampled_from(makers))() for _ in range(draw(st.integers(0, 2)))]


@st.composite
def scores(draw, b: int, h: int, n: int, m: int, d: int, learned: bool = False):
    score = draw(
        st.sampled_from(
            [
                lambda: Dot(),
                lambda: Dot(),
                lambda: Dot(0.2),
                lambda: Gaussian(2.0),
                lambda: General(table(h, d, d, learned=learned)),
            ]
        )
    )()
    for step in draw(steps(b, h, n, m, d, learned)):
        score = score >> step
    return score


@st.composite
def weighs(draw, h: int):
    return draw(
        st.sampled_from(
            [
                Softmax(),
                Softmax(),
                Softmax(plus_one=True),
                Softmax(sink=torch.randn(h, dtype=torch.float64)),
                Sigmoid(-1.0),
                Relu(2, 0.1),
                Laplace(),
                Signed(),
            ]
        )
    )


@st.composite
def calls(
    draw, *, softmax: bool = False, plain: bool = False, per_head: bool = False, most: int = 80
) -> Call:
    """A call with a generated rule; float64, seeded by hypothesis."""
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    b, g, share = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    h = g * share
    n, m = draw(st.integers(1, most)), draw(st.integers(1, most))
    if draw(st.booleans()):
        m = n
    d, e = draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([1, 5, 8]))
    offset = draw(st.sampled_from([0, 0, 0, 5]))
    support = draw(supports(b, h, n + offset, m))
    if per_head:
        few = [draw(supports(b, 1, n + offset, m)) for _ in range(2)]
        support = PerHead(tuple(few[draw(st.integers(0, 1))] for _ in range(h)))
    score = Dot() if plain else draw(scores(b, h, n, m, d, learned=True))
    weigh = Softmax() if softmax else draw(weighs(h))
    q, k, v = (
        torch.randn(b, heads, length, size, dtype=torch.float64, requires_grad=True)
        for heads, length, size in ((h, n, d), (g, m, d), (g, m, e))
    )
    return Call.of(q, k, v, Rule(support, score, weigh, offset))
