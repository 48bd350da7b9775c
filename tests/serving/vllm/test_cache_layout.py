"""Pages in the order of vLLM's kernel mean what plain pages mean; no vLLM is needed."""

from __future__ import annotations

import pytest
import torch

from regard.core.call import Call
from regard.core.key_forms import Paged
from regard.core.rule import Rule
from regard.core.score import Dot
from regard.core.support import Causal, Everything
from regard.run.plan import EXECUTORS
from regard.run.runner import run
from regard.serving.vllm.cache_layout import CacheLayout, ServerPages, Tiling, find_layout, layouts
from regard.serving.vllm.cpu_kernel import CpuKernel

BLOCK, D, G, PAGES, M = 32, 32, 2, 6, 150
LAYOUTS = list(layouts(BLOCK, D))


def pack(one: Tiling, x: torch.Tensor) -> torch.Tensor:
    """Store [..., block, d] as the tiling has it: the inverse of `unpack`."""
    where = one.unpack(torch.arange(x.shape[-2] * x.shape[-1]).float()).long().flatten()
    return torch.empty_like(x).flatten(-2).index_copy(-1, where, x.flatten(-2)).view_as(x)


def both(layout: CacheLayout, dtype: torch.dtype = torch.float32) -> tuple[Paged, ServerPages]:
    """The same keys, plain and as the layout stores them; NaN behind the end."""
    k, v = torch.randn(2, PAGES, G, BLOCK, D).to(dtype).unbind(0)
    table = torch.randperm(PAGES)[None, None, : -(-M // BLOCK)].int()
    k[table[0, 0, -1], :, M % BLOCK :] = v[table[0, 0, -1], :, M % BLOCK :] = torch.nan
    lengths = torch.tensor([[M]])
    stored = pack(layout.keys, k), pack(layout.values, v)
    plain = Paged(k, v, table, lengths, longest=M)
    return plain, ServerPages(*stored, table, lengths, longest=M, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_hold_the_same_keys(layout: CacheLayout, dtype: torch.dtype) -> None:
    want, got = both(layout, dtype)
    slots = torch.randint(0, M, (1, G, 40))
    for a, b in (
        (list(want.dense())[:2], list(got.dense())[:2]),
        (want.gather(slots), got.gather(slots)),
        ((want.since(70),), (got.since(70),)),
        ((want.since(0),), (got.since(0),)),
    ):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)
            assert not x.isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_pages_of_each_head_are_taken_in_place(layout: CacheLayout) -> None:
    want, got = both(layout)
    pages = torch.tensor([[[0, 2, 4], [1, 3, 4]]])
    slots = (pages[..., None] * BLOCK + torch.arange(BLOCK)).flatten(2)[..., : M - 2 * BLOCK]
    taken = got.take(slots, full=True)
    assert type(taken) is ServerPages
    assert taken.k.data_ptr() == got.k.data_ptr()
    for x, y in zip(
        list(want.take(slots, full=True).dense())[:2], list(taken.dense())[:2], strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("shift", [1, 16])
def test_what_is_no_page_is_not_taken_for_one(shift: int) -> None:
    want, got = both(LAYOUTS[0])
    slots = torch.arange(shift, shift + 2 * BLOCK).expand(1, G, -1)
    taken = got.take(slots, full=True)
    assert type(taken) is not ServerPages
    assert torch.equal(want.take(slots).dense().k, taken.dense().k)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_call_over_them_is_that_over_plain_pages(layout: CacheLayout) -> None:
    want, got = both(layout)
    for n, rule in ((1, Rule(Everything(), Dot(0.2))), (7, Rule(Causal(), Dot(0.2), offset=M - 7))):
        q = torch.randn(1, 2 * G, n, D)
        a, b = (run(Call(q, x, rule), ("lse", "received")) for x in (want, got))
        torch.testing.assert_close(b.out, a.out)
        torch.testing.assert_close(b.lse, a.lse)
        assert a.survey is not None
        assert b.survey is not None
        torch.testing.assert_close(b.survey.received, a.survey.received)


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_a_layout_is_found_by_what_is_written(number: int) -> None:
    layout = LAYOUTS[number]

    def write(k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        halves = cache.view(2, 1, 2, BLOCK, D)
        halves[0, 0, 0] = pack(layout.keys, k[:, 0])
        halves[0, 0, 1] = pack(layout.values, v[:, 0])

    found = find_layout(write, BLOCK, D, torch.bfloat16)
    assert found is not None
    x = torch.randn(BLOCK, D)
    assert torch.equal(found.keys.unpack(pack(layout.keys, x).flatten()), x)
    assert torch.equal(found.values.unpack(pack(layout.values, x).flatten()), x)


def test_an_order_that_is_not_known_is_none() -> None:
    draw = torch.randperm(BLOCK * D)

    def write(k: torch.Tensor, v: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        cache.view(2, 1, 2, -1)[0, 0] = torch.stack([x.flatten()[draw] for x in (k, v)])

    assert find_layout(write, BLOCK, D, torch.float32) is None


def test_the_kernel_says_what_it_cannot_run() -> None:
    _, keys = both(LAYOUTS[0])
    q = torch.randn(1, 2 * G, 1, D)
    kernel = CpuKernel()
    assert kernel.can(Call(q, keys, Rule(Everything(), Dot(0.2))))
    assert "vLLM's cache" in kernel.can(Call.of(q, q, q)).reason  # type: ignore[union-attr]
    many = Call(q.expand(-1, -1, 3, -1), keys, Rule(Causal(), Dot(0.2), offset=5))
    assert "not the past" in kernel.can(many).reason  # type: ignore[union-attr]
    assert "vllm" not in EXECUTORS


@pytest.mark.parametrize("number", range(2))
def test_keys_alone_are_read_where_keys_alone_are_asked_for(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = both(LAYOUTS[0])[number]
    seen: list[int] = []
    plain = type(one)._gathered

    def noted(self: Paged, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.data_ptr())
        return plain(self, x)

    monkeypatch.setattr(type(one), "_gathered", noted)
    for first in (0, 70):
        assert one.since(first).shape == (1, G, M - first, D)
    assert set(seen) == {one.k.data_ptr()}
