"""A support that is defined here alone is as fast as one of the library: it answers for itself."""

from __future__ import annotations

import time
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import regard
from regard.core.band import Band
from regard.core.call import Call
from regard.core.rule import Rule
from regard.core.support import Causal, Dilated, Sinks, Support, Window
from regard.core.tilemap import RunMap
from regard.core.value import _shared, value
from regard.run.bands import band_of, bands_of_heads
from regard.run.cutting import cut
from regard.run.plan import EXECUTORS
from tests.core.test_runs import analytic
from tests.strategies import supports

LONG = 1_000_000


@value
class Streaming(Support):
    """The last `recent` keys and the first `sinks`: a band, and nothing else is said."""

    recent: int
    sinks: int

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what is near, and the sinks."""
        return (j <= i) & ((i - j < self.recent) | (j < self.sinks))

    def band(self) -> Band:
        """Told in four numbers."""
        return Band(1 - self.recent, 0, self.sinks, 0)


@value
class Columns(Support):
    """Keys of the query's own column in a table of `width`, with an order and tiles of its own."""

    width: int

    def allows(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Allow what is in one column."""
        return i % self.width == j % self.width

    def order(self, n: int, side: int, device: torch.device) -> Tensor:
        """Column by column."""
        return torch.argsort(torch.arange(n, device=device) % self.width, stable=True)

    def tile_size(self) -> tuple[int, int]:
        """Tiles of few keys."""
        return 32, 16


class Written(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0

    def _drop(self, count: int) -> None:
        self.live -= count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and not func.is_view and not any(x is y for y in args):
                count = x.numel() * x.element_size()
                self.live += count
                self.most = max(self.most, self.live)
                weakref.finalize(x, self._drop, count)
        return out


@pytest.mark.parametrize(
    "support",
    [Streaming(64, 4), Streaming(64, 0), Causal() & Window(64), Causal() & (Window(64) | Sinks(4))],
    ids=str,
)
def test_a_band_of_a_million_keys_is_planned_in_10_ms_and_10_mb(support):
    q = torch.zeros(1, 1, 1, 1).expand(1, 8, LONG, 64)
    short = q[:, :, :5000]
    regard.plan(short, short, short, support)
    plans, maps = [], []
    for _ in range(8):
        _shared.clear()  # each plan is the first
        start = time.process_time()
        plan = regard.plan(q, q, q, support)
        plans.append(time.process_time() - start)
        found = Rule(support).tiles(LONG, LONG)
        maps.append(time.process_time() - start - plans[-1])
        assert plan.executor == "folded"
        assert isinstance(found, RunMap)
    if support in (Streaming(64, 0), Causal() & Window(64)):  # with sinks: twice the runs
        assert min(plans) < 0.010
        assert min(maps) < 0.010
    _shared.clear()
    with Written() as written:
        regard.plan(q, q, q, support)
        Rule(support).tiles(LONG, LONG)
    assert written.most < 10_000_000


def test_what_needs_no_more_than_a_band_follows_from_it():
    written, own = Causal() & (Window(64) | Sinks(4)), Streaming(64, 4)
    assert band_of(own) == band_of(written)
    assert str(own.tiles(LONG, LONG, 64)) == str(written.tiles(LONG, LONG, 64))
    assert own.horizon(1000) == written.horizon(1000)
    assert own.anchor() == written.anchor()
    mixed = regard.PerHead([own, Causal()]) & Causal()
    assert bands_of_heads(mixed) == [band_of(own), band_of(Causal())]


@pytest.mark.parametrize("support", [Streaming(20, 3), Columns(5), Causal() & Columns(7)], ids=str)
@pytest.mark.parametrize("n", [130, 257])
def test_its_fold_equals_the_reference(support, n):
    q, k, v = (torch.randn(1, heads, n, 8, dtype=torch.float64) for heads in (4, 2, 2))
    call = Call.of(q, k, v, Rule(support)).checked()
    found, want = (EXECUTORS[x].run(call) for x in ("folded", "reference"))
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("support", [Columns(5), Causal() & Columns(5)], ids=str)
def test_it_is_folded_in_its_own_order_and_tiles(support):
    q = torch.zeros(1, 1, 100, 8)
    made = cut(Call.of(q, q, q, Rule(support)))
    assert made.size == (32, 16)
    for order in made.orders:
        assert order is not None
        assert order.tolist() == sorted(range(100), key=lambda x: x % 5)
    assert cut(Call.of(q, q, q, Rule(Dilated(5)))).orders[0].tolist() == made.orders[0].tolist()


def positions(n: int, m: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n)[:, None], torch.arange(m)


@given(st.data())
def test_a_band_is_the_support_that_it_is_of(data):
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    support = data.draw(analytic(20) | supports(1, 1, 20, 20))
    band = support.band()
    if band is not None:
        assert torch.equal(band.allows(*positions(n, m)), support.matrix(n, m)[0, 0])


@given(st.data())
def test_kernels_and_counts_read_a_band_as_it_is_meant(data):
    """The condition of the kernels, and how many queries meet each key."""
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    offset = data.draw(st.integers(0, 5))
    support = data.draw(analytic(20))
    band, whole = band_of(support), support.band()
    matrix = support.shift(offset).matrix(n, m)[0, 0]
    if whole is not None:
        seen = whole.seen(n, m, offset, torch.device("cpu"))
        assert seen.tolist() == matrix.sum(0).tolist()
    if band is not None:
        i, j = positions(n, m)
        apart = j - i - offset
        kernel = (apart <= band.high) & ((apart >= band.low) | (j < band.sinks))
        assert torch.equal(kernel, matrix)


def test_a_window_that_cuts_sinks_off_is_no_band_of_a_kernel():
    """These three were once told to kernels as bands of other pairs."""
    assert band_of(Window(8) | Sinks(4)) is None
    assert band_of(Window(100, 6) & (Window(8, 3) | Sinks(4))) is None
    assert band_of((Window(8, 3) | Sinks(4)) & Window(100, 6)) is None
