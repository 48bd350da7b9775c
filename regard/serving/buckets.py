"""Attention Buckets: run several rotary bases at once, since each is weak at other distances."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import CapabilityError, ValueRangeError, fail, shape_of
from regard.core.method import method
from regard.core.rotary import Rotation
from regard.models.rotary import MOVING
from regard.models.wrap import put_before

# Candidates are the trained base times 1.05, 1.10, ... 2.50: larger factors harm a model.
CANDIDATES = tuple(1 + step / 20 for step in range(1, 31))


def decay(base: float, d: int, reach: int = 2000) -> Tensor:
    """Return how well equal queries and keys match at distances 1, 2, ..., for a base: [reach].

        g(delta) = sum_k cos(delta base^(-2k/d)),  k < d / 2

    >>> decay(10_000.0, 4, 3).shape
    torch.Size([3])
    """
    distance = torch.arange(1, reach + 1, dtype=torch.float64)
    return (distance[:, None] * Rotation(base=base).speeds(d).double()).cos().sum(-1)


def troughs(curve: Tensor) -> Tensor:
    """Return the indices [t] at which a curve [m] is below its neighbors.

    >>> troughs(torch.tensor([3.0, 1.0, 2.0, 0.0, 4.0])).tolist()
    [1, 3]
    """
    inner = (curve[1:-1] < curve[:-2]) & (curve[1:-1] <= curve[2:])
    return inner.nonzero()[:, 0] + 1


def choose_bases(base: float, d: int, n: int = 6, reach: int = 2000) -> tuple[float, ...]:
    """Choose n bases, the trained one first, for heads that rotate d channels.

    Each next one is the candidate with the highest sum over the troughs of the maximum of the
    chosen curves, `max_j g_j`.

    >>> len(choose_bases(10_000.0, 64, n=3, reach=200))
    3
    """
    if not 1 <= n <= len(CANDIDATES) + 1:
        fail(ValueRangeError, "n", n, f"1 to {len(CANDIDATES) + 1} bases", "6 are usual")
    if reach < 3:
        fail(ValueRangeError, "reach", reach, "at least 3 tokens", "pass the length of a context")
    left = {base * by: decay(base * by, d, reach) for by in CANDIDATES}
    chosen, best = [base], decay(base, d, reach)
    for _ in range(n - 1):
        low = troughs(best)
        low = low if len(low) else best.argmin()[None]
        new = max(left, key=lambda c: float(left[c][low].sum()))
        best = torch.maximum(best, left.pop(new))
        chosen.append(new)
    return tuple(chosen)


def merged(logits: Tensor) -> Tensor:
    """Merge the next-token logits of N copies [N, ..., V], weighted by confidence: logs [..., V].

        p = sum_j a_j p_j,  a_j = max_v p_j / sum_i max_v p_i

    >>> sure, unsure = torch.tensor([0.0, -50.0]), torch.tensor([0.0, 0.0])
    >>> merged(torch.stack((sure, unsure))).exp()
    tensor([0.8333, 0.1667])
    """
    p = logits.float().log_softmax(-1)
    share = p.amax(-1, keepdim=True).log_softmax(0)
    return (p + share).logsumexp(0)


@method(
    "attention_buckets",
    call="from regard.models.loading import load\n"
    "from regard.serving.buckets import Buckets\n\n"
    "model, tokenizer = load()\n"
    "ids = tokenizer('def first(', return_tensors='pt').input_ids\n"
    "with Buckets(model):\n"
    "    print(tokenizer.decode(model.generate(ids, max_new_tokens=4)[0]))",
)
class Buckets:
    """Run a model of transformers at several rotary bases at once, until `close()`.

    Each text runs as N copies in one batch, copy j at base j with its own cache, and all continue
    with the token chosen from the merged distribution. Without `bases`, `n` are chosen by
    `choose_bases` for distances up to `reach`. Inputs and logits are those of the texts; caches
    have N rows for each text, copy by copy, so compute and memory grow N times. Greedy decoding and
    sampling work; beam search, which reorders rows of a cache, does not.
    (Attention Buckets, Chen et al. 2023)
    """

    def __init__(
        self, model: Any, bases: Sequence[float] | None = None, n: int = 6, reach: int = 2000
    ) -> None:
        self.rotary = _rotary_of(model)
        self.trained, self.d = _base_of(model, self.rotary), 2 * len(self.rotary.inv_freq)
        if bases is None:
            bases = choose_bases(self.trained, self.d, n, reach)
        if not len(bases) or not all(isinstance(c, int | float) and c > 1 for c in bases):
            fail(ValueRangeError, "bases", shape_of(bases), "numbers above 1", "pass [1e4, 1.5e4]")
        self.model, self.bases = model, tuple(float(c) for c in bases)
        own = self.rotary.inv_freq
        # The trained base keeps its exact frequencies.
        self._speeds = [
            own if abs(c / self.trained - 1) < 1e-6
            else Rotation(base=c).speeds(self.d).to(own.device, own.dtype)
            for c in self.bases
        ]  # fmt: skip
        self._rows = 0
        self._undo = [put_before(self.rotary, self._turn), put_before(model, self._run)]

    def _turn(self, plain: Callable[..., Any], x: Tensor, position_ids: Tensor) -> Any:
        """Compute the cosines and sines of all copies, each at its base."""
        b, n = self._rows, len(self.bases)
        if not b:
            return plain(x, position_ids)
        own, found = self.rotary.inv_freq, []
        positions = position_ids.expand(n * b, -1).split(b)
        try:
            for speeds, at, part in zip(self._speeds, positions, x.split(b), strict=True):
                self.rotary.inv_freq = speeds
                found.append(plain(part, at))
        finally:
            self.rotary.inv_freq = own
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _run(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run all copies, and merge their logits."""
        names = list(inspect.signature(plain).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        first = given.get("input_ids")
        first = given.get("inputs_embeds") if first is None else first
        if not isinstance(first, Tensor) or first.dim() < 2:
            fail(CapabilityError, "input_ids", shape_of(first), "ids [b, n]", "pass a batch")
        if given.get("labels") is not None:
            fail(
                CapabilityError, "labels", shape_of(given["labels"]), "nothing: logits are merged",
                "leave them out, or close the buckets to train",
            )  # fmt: skip
        b, n = len(first), len(self.bases)
        self._need_cache(given.get("past_key_values"), n * b)
        self._rows = b
        try:
            out = plain(**{name: _copied(x, b, n) for name, x in given.items()})
        finally:
            self._rows = 0
        logits = getattr(out, "logits", None)
        if not isinstance(logits, Tensor):
            fail(
                CapabilityError, "model", f"{type(out).__name__} of {type(self.model).__name__}",
                "logits of next tokens", "pass the model with its head, and leave return_dict",
            )  # fmt: skip
        if n > 1:
            logits = merged(logits.view(n, b, *logits.shape[1:])).to(logits.dtype)
        return type(out)(logits=logits, past_key_values=getattr(out, "past_key_values", None))

    def _need_cache(self, cache: Any, rows: int) -> None:
        """Raise unless a cache holds all copies, or nothing yet."""
        layers = [x for x in getattr(cache, "layers", []) if isinstance(x.keys, Tensor)]
        if layers and len(layers[0].keys) not in (0, rows):
            fail(
                CapabilityError, "past_key_values", f"{len(layers[0].keys)} rows of texts",
                f"{rows}: {len(self.bases)} copies of each, in their order",
                "start the text with the buckets, greedily or by sampling: beams reorder rows",
            )  # fmt: skip

    def close(self) -> None:
        """Restore the model."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Buckets({', '.join(f'{c:g}' for c in self.bases)})"


def _copied(x: Any, b: int, n: int) -> Any:
    """Repeat the rows of inputs that have one for each text."""
    if isinstance(x, Tensor) and x.dim() > 1 and len(x) == b:
        return torch.cat([x] * n)
    return x


def _rotary_of(model: Any) -> Any:
    """Return the rotary module of all layers of a model, or why there is none."""
    modules = model.modules() if isinstance(model, nn.Module) else []
    found = [m for m in modules if type(m).__name__.endswith("RotaryEmbedding")]
    said = "which has no rotary positions"
    if found:
        said = "whose layers rotate differently"
    if (
        len(found) != 1 or not isinstance(getattr(found[0], "inv_freq", None), Tensor)
        or list(inspect.signature(found[0].forward).parameters) != ["x", "position_ids"]
    ):  # fmt: skip
        fail(
            CapabilityError, "model", f"{type(model).__name__}, {said}",
            "one rotation for all layers", "use a rotary model, such as Llama or Qwen",
        )  # fmt: skip
    return found[0]


def _base_of(model: Any, rotary: Any) -> float:
    """Return the trained base, derived from the frequencies: exact schedules only."""
    speeds = rotary.inv_freq.detach().double().cpu()
    r = len(speeds)
    base = float(f"{float(speeds[-1]) ** (-r / max(r - 1, 1)):.5g}")
    said = "whose rotary frequencies are scaled"
    if r < 2:
        said = "which rotates two channels, where every base is the same"
    if (
        r < 2 or base <= 1 or getattr(rotary, "rope_type", "default") in MOVING
        or not torch.allclose(Rotation(base=base).speeds(2 * r).double(), speeds, rtol=1e-3, atol=0)
    ):  # fmt: skip
        fail(
            CapabilityError, "model", f"{type(model).__name__}, {said}", "speeds base^(-2k/d)",
            "buckets only change the base: use a model without rope scaling",
        )  # fmt: skip
    return base
