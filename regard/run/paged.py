"""Decode over pages of keys, or over chosen keys: the calls a memory makes.

Both run in a Triton kernel on a GPU, and elsewhere by gathering the keys and attending to them;
`executor=` forces "triton" or "gathered".
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.errors import ExecutorError, ShapeError, ValueRangeError, fail, shape_of
from regard.core.partial import Partial
from regard.core.rule import Rule
from regard.core.score.matches import Dot
from regard.core.support.bands import Causal, Sinks, Window
from regard.core.support.base import Support
from regard.core.support.chosen import PerHead
from regard.run.bands import FAR
from regard.run.plan import chosen
from regard.run.triton.here import why_not_here


def paged_partial(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | Tensor | None = None,
    sinks: int | Tensor = 0,
    splits: int | None = None,
    executor: str | None = None,
) -> Partial:
    """Attend causally from the last n positions of each row, over its pages.

    q [b, h, n, d]; k_pages [pages, g, page, d], v_pages [pages, g, page, e]; `table` int32
    [b, pages of a row]; `lengths` int32 [b] counts the keys of each row, the n new ones included.
    `window` and `sinks` are numbers, or one for each head [h].

    >>> pages = torch.randn(8, 2, 16, 4)
    >>> table = torch.tensor([[3, 5], [0, 1]], dtype=torch.int32)
    >>> lengths = torch.tensor([20, 32], dtype=torch.int32)
    >>> paged_partial(torch.randn(2, 4, 1, 4), pages, pages, table, lengths).out.shape
    torch.Size([2, 4, 1, 4])
    """
    b, h, n, d = q.shape
    if k_pages.dim() != 4 or v_pages.shape[:3] != k_pages.shape[:3] or k_pages.shape[3] != d:
        fail(
            ShapeError, "k_pages", f"{list(k_pages.shape)} with v_pages {list(v_pages.shape)}",
            f"[pages, g, page, {d}] and [pages, g, page, e]", "give both one shape but for e",
        )  # fmt: skip
    for name, x, rank in (("table", table, 2), ("lengths", lengths, 1)):
        if x.dim() != rank or x.shape[0] != b or x.is_floating_point():
            fail(ShapeError, name, shape_of(x), f"integers, first axis {b}", "one row a request")
    if h % k_pages.shape[1]:
        fail(
            ShapeError, "k_pages", f"{k_pages.shape[1]} heads", f"a divisor of the {h} query heads",
            "repeat or pool the key heads",
        )  # fmt: skip
    if (
        lengths.device.type == "cpu"
        and not n <= int(lengths.min()) <= int(lengths.max()) <= k_pages.shape[2] * table.shape[1]
    ):
        fail(
            ValueRangeError, "lengths", lengths.tolist(),
            f"{n} to {k_pages.shape[2] * table.shape[1]} keys", "the new tokens count as keys",
        )  # fmt: skip
    scale = d**-0.5 if scale is None else scale
    if by_kernel(executor, q, k_pages, v_pages):
        from regard.run.triton.decode import decode, per_head

        banded = window is not None or isinstance(sinks, Tensor) or sinks > 0
        return decode(
            q, k_pages, v_pages,
            scale=scale,
            first=(lengths - n).to(torch.int32),
            lengths=lengths.to(torch.int32),
            window=per_head(window, h, FAR, q.device) if banded else None,
            sinks=per_head(sinks, h, 0, q.device) if banded else None,
            table=table.to(torch.int32),
            splits=splits,
        )  # fmt: skip
    k, v = (pages[table.long()].transpose(1, 2).flatten(2, 3) for pages in (k_pages, v_pages))
    place = torch.arange(k.shape[2], device=q.device).expand(b, -1)
    where = torch.where(place < lengths[:, None], place, -1)
    # Behind the end of a row a page holds anything, and nothing times no number is no number.
    k, v = (x.masked_fill((where < 0)[:, None, :, None], 0) for x in (k, v))
    now = lengths.long()[:, None] - n + torch.arange(n, device=q.device)
    call = Call(q, k, v, Rule(_support(window, sinks, h), Dot(scale)), now, where)
    return chosen(call, lse=True).run(call)


def selected_partial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    *,
    scale: float | None = None,
    offset: int | None = None,
    splits: int | None = None,
    executor: str | None = None,
) -> Partial:
    """Attend from q [b, h, n, d] to chosen keys of k [b, g, m, d]; `index` int [b, g or 1, c].

    Queries stand at `offset`, ... (the last n positions where not given) and meet only chosen keys
    at or before them; a negative entry is no key. Nothing is copied in the kernel.

    >>> q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 100, 8)
    >>> selected_partial(q, k, k, torch.tensor([[[0, 17, 99]]])).lse.shape
    torch.Size([1, 4, 1])
    """
    (b, _, n, d), (g, m) = q.shape, k.shape[1:3]
    if index.dim() != 3 or index.shape[0] != b or index.shape[1] not in (1, g):
        fail(ShapeError, "index", shape_of(index), f"[{b}, {g} or 1, c]", "choose keys by key head")
    if index.device.type == "cpu" and index.numel() and int(index.max()) >= m:
        fail(ValueRangeError, "index", int(index.max()), f"keys below {m}", "count keys from 0")
    scale = d**-0.5 if scale is None else scale
    offset = m - n if offset is None else offset
    index = index.expand(b, g, -1)
    if by_kernel(executor, q, k, v):
        from regard.run.triton.decode import decode

        return decode(q, k, v, scale=scale, first=offset, lengths=m, index=index, splits=splits)
    # Calls want positions that increase; absent keys go last and are marked.
    order = torch.where(index < 0, m, index).long().sort(-1).values
    take = order.clamp(max=m - 1)[..., None]
    keys, values = (x.gather(2, take.expand(-1, -1, -1, x.shape[3])) for x in (k, v))
    where = torch.where(order < m, order, -1)
    now = torch.arange(offset, offset + n, device=q.device)
    call = Call(q, keys, values, Rule(Causal(), Dot(scale)), now, where)
    return chosen(call, lse=True).run(call)


def by_kernel(executor: str | None, *tensors: Tensor) -> bool:
    """Decide between a kernel of decoding and gathering, for a call over q and other tensors."""
    if executor not in (None, "triton", "gathered"):
        fail(
            ExecutorError, "executor", repr(executor), "'triton' or 'gathered'", "pass one of these"
        )
    q = tensors[0]
    reason = why_not_here(q.device) or ("it sums in float32" if q.dtype == torch.float64 else "")
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        reason = reason or "a gradient is wanted, and decoding has none"
    if executor == "triton" and reason:
        fail(
            ExecutorError,
            "executor",
            f"'triton', which cannot: {reason}",
            "'gathered'",
            "leave it out",
        )
    return executor == "triton" or (executor is None and q.device.type == "cuda" and not reason)


def _support(window: int | Tensor | None, sinks: int | Tensor, h: int) -> Support:
    """Write window and sinks as a support."""

    def one(w: int | None, s: int) -> Support:
        if w is None or w >= FAR:
            return Causal()
        near: Support = Window(w)
        return Causal() & (near | Sinks(s) if s else near)

    if not isinstance(window, Tensor) and not isinstance(sinks, Tensor):
        return one(window, sinks)
    windows = torch.as_tensor(FAR if window is None else window).expand(h).tolist()
    firsts = torch.as_tensor(sinks).expand(h).tolist()
    return PerHead(tuple(one(w, s) for w, s in zip(windows, firsts, strict=True)))
