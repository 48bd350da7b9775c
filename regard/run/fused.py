"""PyTorch's own fused attention, where a rule fits it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from regard.core.call import Call
from regard.core.keys import Dense
from regard.core.partial import Partial, merge
from regard.core.score.base import Score
from regard.core.score.matches import GaussianMatch, folded
from regard.core.support.bands import Causal
from regard.core.support.base import Everything
from regard.core.support.chosen import Extended
from regard.core.weigh import Softmax
from regard.run.counting import COUNT
from regard.run.dense_kernels import Shape, count_dense, dense
from regard.run.executor import Answer, Cost, Executor, No, Yes
from regard.run.isolation import contained, contained_out, unrecorded
from regard.run.transforms import transforms_around

# A mask of at most this many entries is written out; beyond it, folding takes over.
MASK_ENTRIES = 1 << 22
# Where keys lie beside those of a pattern, a mask of more entries costs more than a second kernel.
BESIDE_ENTRIES = 1 << 18
# Extra keys for each of one's own up to which they go before these, in one kernel.
FEW_EXTRA = 0.125


class Fused(Executor):
    """`scaled_dot_product_attention`: plain, causal, or with a small mask."""

    name = "fused"

    def can(self, call: Call) -> Answer:
        """Softmax of a product, all pairs or causal, or few enough pairs to mask."""
        reason = why_not_product(call)
        if reason:
            return No(reason)
        if transforms_around() and (call.rule.score.steps or call.d != call.e):
            return No("torch.func: PyTorch's own call takes no extra channels")
        if pattern(call) is not None:
            return Yes()
        if beside(call):
            return Yes("the extra keys beside the others")
        entries = mask_entries(call)
        if entries > MASK_ENTRIES:
            return No(f"its mask would have {entries:,} entries (limit {MASK_ENTRIES:,})")
        return Yes(f"with a mask of {entries:,} entries")

    def cost(self, call: Call) -> Cost:
        """All pairs, half of them if causal."""
        kind = pattern(call) or beside(call)
        pairs = call.b * call.h * call.n * call.m * (0.5 if kind == "causal" else 1.0)
        size = call.q.element_size()
        moved = size * (2 * call.q.numel() + call.k.numel() + call.v.numel())
        mask = 0.0 if kind else float(mask_entries(call) * size)
        return Cost(2.0 * pairs * (call.d + call.e), moved + 2 * mask, mask, 1.0 if kind else 1.3)

    def run(self, call: Call) -> Partial:
        """Run the kernel, with the lse."""
        return contained(call, self._run)

    def _run(self, call: Call) -> Partial:
        q, k, scale = product(call)
        kind = beside(call)
        if kind == "all":  # whose extra keys may be attended to by all as well
            return dense(q, k, call.v, Shape(scale))
        if kind:
            own: int = call.rule.support.keys  # type: ignore[attr-defined]  # of an Extended
            return beside_causal(q, k, call.v, own, scale)
        kind = pattern(call)
        if call.dropout and not call.rule.weigh.has_sink:
            return Partial(self._out(call), None)
        mask = None if kind else additive_mask(call)
        made = dense(q, k, call.v, Shape(scale, kind == "causal"), mask)
        # A sink takes its share of the weights before any is dropped: by the lse of all of them.
        return Partial(self._out(call), made.lse) if call.dropout else made

    def out(self, call: Call) -> Tensor:
        """Run the kernel without the lse: one call, no overhead."""
        q, rule = call.q, call.rule
        keys = call.keys
        # Most steps of decoding, and small calls of which nothing is asked: no pair is masked.
        if type(keys) is Dense and rule.plain:
            scale = rule.score.match.scale  # type: ignore[attr-defined]  # of a plain rule: a dot
            at = keys.at
            full = at is None or getattr(at, "full", None)  # a tensor of positions has none
            full = keys.full if full is None else full
            if full and (scale is None or scale > 0) and not torch._C._is_any_autocast_enabled():
                k, v = keys.k, keys.v
                if q.shape[2] == 1:
                    return single(q, k, v, scale, call.dropout)
                d = q.shape[3]
                if d == v.shape[3] or call.dropout:
                    return every_pair(q, k, v, d**-0.5 if scale is None else scale, call.dropout)
        return contained_out(call, self._out)

    def _out(self, call: Call) -> Tensor:
        if beside(call):
            return self._run(call).out
        q, k, scale = product(call)
        if q.shape[-1] != call.e and not call.dropout:  # PyTorch would write the matrix out
            return self._run(call).out
        kind = pattern(call)
        if call.n == 1 and kind == "all":
            return single(q, k, call.v, scale, call.dropout)
        if kind == "all":
            return every_pair(q, k, call.v, scale, call.dropout)
        mask = None if kind else additive_mask(call)
        count_dense(q, k, call.v, causal=kind == "causal")
        return scaled_dot_product_attention(
            q,
            k,
            call.v,
            mask,
            call.dropout,
            kind == "causal",
            scale=scale,
            enable_gqa=call.h != call.g,
        )


def every_pair(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
    """Attend from each query to every key."""
    count_dense(q, k, v, causal=False)
    return scaled_dot_product_attention(
        q, k, v, None, dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def single(q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float = 0.0) -> Tensor:
    """Attend from single queries q [b, h, 1, d] to all keys: [b, h, 1, e]."""
    b, h, n, d = q.shape
    g = k.shape[1]
    count_single(q, k, v)
    if h == g or q.device.type != "cpu":
        return scaled_dot_product_attention(q, k, v, None, dropout, scale=scale, enable_gqa=h != g)
    # Queries that share a key head are rows of one: the kernel of the CPU reads its keys once.
    rows = q.reshape(b, g, -1, d)
    out = scaled_dot_product_attention(rows, k, v, None, dropout, scale=scale)
    return out.reshape(b, h, n, -1)


def count_single(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Count attention from q [b, h, n, d] to every key of k [b, g, m, d] and v [b, g, m, e]."""
    b, h, n, d = q.shape
    (_, g, m, _), e = k.shape, v.shape[3]
    pairs, size = float(b * h * n * m), q.element_size() * b * (d + e)
    COUNT.pairs += pairs  # as `count` adds them, without a frame of Python: every step waits for it
    COUNT.flops += 2.0 * pairs * (d + e)
    COUNT.bytes += float(size * (h * n + g * m))


def why_not_product(call: Call) -> str:
    """Return why a call is not the softmax of a scaled product, or nothing if it is."""
    if type(call.rule.weigh) is not Softmax:
        return f"weighs by {call.rule.weigh}, not by softmax"
    score = call.rule.score
    if not score.match.is_product:
        return f"{score.match} is no product of q and k"
    half = call.q.dtype in (torch.bfloat16, torch.float16)
    if half and isinstance(score.match, GaussianMatch):
        return f"{score.match} would lose its squares to {call.q.dtype}"
    for step in score.steps:
        if not step.folds:
            return f"{step} cannot ride in extra channels"
        if half and any(t.dtype != call.q.dtype for t in step.tensors()):
            return f"{step} would be rounded to {call.q.dtype} in extra channels"
    if score.steps and product_left_over(call):
        return f"{product_left_over(call)[0]} cannot ride in extra channels"
    return ""


def product_left_over(call: Call) -> tuple[object, ...]:
    """Return the steps that did not fold into q and k."""
    with unrecorded():
        made = folded(call.rule.score, call.q, call.k)
    return made[3].steps if made else call.rule.score.steps


def product(call: Call) -> tuple[Tensor, Tensor, float]:
    """Return q, k and a scale above 0 that hold the whole score."""
    score: Score = call.rule.score
    if not score.steps:
        made = score.match.prepare(call.q, call.k)
        assert made is not None
        q, k, scale = made
    else:
        folding = folded(score, call.q, call.k)
        assert folding is not None
        q, k, scale, _ = folding
    if scale <= 0:  # a kernel would scale the -inf of its mask, too, and get +inf or NaN
        return q * scale, k, 1.0
    return q, k, scale


def pattern(call: Call) -> str | None:
    """Return "all" or "causal" where the support is just that, else None."""
    if call.placed:
        return None
    support, offset = call.rule.support, call.rule.offset
    if isinstance(support, Everything):
        return "all"
    if isinstance(support, Causal):
        if offset >= call.m - 1:  # every query stands at or after the last key
            return "all"
        if offset == 0:
            return "causal"
    return None


def beside(call: Call) -> str | None:
    """Return "all" or "causal" where that is the support of all keys but extra ones, else None.

    None as well where its mask is small, and where weights are dropped.
    """
    support = call.rule.support
    if not isinstance(support, Extended) or call.dropout or not 0 < support.keys < call.m:
        return None
    if call.n * call.m <= BESIDE_ENTRIES:
        return None
    own = slice(support.keys)
    rule = call.rule.replace(support=support.part)
    return pattern(call.replace(k=call.k[:, :, own], v=call.v[:, :, own], rule=rule))


def beside_causal(q: Tensor, k: Tensor, v: Tensor, own: int, scale: float) -> Partial:
    """Attend causally to the first `own` keys, and to all of the others.

    A few extra keys go first, behind as many queries of zeros: then the whole is causal, and one
    kernel runs it. Many are a part of their own, which is merged.
    """
    extra = k.shape[2] - own
    if extra > FEW_EXTRA * own:
        parts = ((slice(own), True), (slice(own, None), False))
        return merge(*(dense(q, k[:, :, x], v[:, :, x], Shape(scale, below)) for x, below in parts))
    k, v = (torch.cat((x[:, :, own:], x[:, :, :own]), 2) for x in (k, v))
    made = dense(pad(q, (0, 0, extra, 0)), k, v, Shape(scale, causal=True))
    assert made.lse is not None
    return Partial(made.out[:, :, extra:], made.lse[:, :, extra:])


def mask_entries(call: Call) -> int:
    """How many entries the mask of a call has."""
    batch, heads = call.rule.support.extent()
    if call.placed:
        batch, heads = call.b, max(heads, call.h if _per_head(call) else 1)
    return batch * heads * call.n * call.m


def _per_head(call: Call) -> bool:
    return call.k_positions is not None and call.k_positions.dim() == 3


def additive_mask(call: Call) -> Tensor:
    """Write the mask out as 0 and -inf, [b or 1, h or 1, n, m]."""
    allowed = call.allowed(call.at())
    allowed = allowed.reshape((1,) * (4 - allowed.dim()) + allowed.shape)
    mask = torch.zeros(allowed.shape, dtype=call.q.dtype, device=call.q.device)
    return mask.masked_fill_(~allowed, -torch.inf)
