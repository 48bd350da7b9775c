"""A row of a batch is what it is alone: over every policy that is registered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError
from regard.policies import known
from tests.architectures import sharp_llama
from tests.policies.test_laws import NAMES, prepared

N, STEPS = 70, 8
PADDED = [name for name in NAMES if not known()[name].columns]
TRIED = [(torch.float32, 0.3), (torch.float32, 12), (torch.bfloat16, 0.3)]
tried = pytest.mark.parametrize(("dtype", "keep"), TRIED, ids=["float32-0.3", "float32-12", "bf16"])


@functools.cache
def model_of(dtype: torch.dtype) -> Any:
    return sharp_llama(4).to(dtype)


@torch.no_grad()
def logits(model: Any, ids: Tensor, pads: Sequence[int]) -> Tensor:
    """Logits after the prompt and after each of the last tokens, [b, 1 + STEPS, vocab]."""
    real = (torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]).long()
    at = (real.cumsum(1) - 1).clamp(min=0)
    first, cache, found = ids.shape[1] - STEPS, None, []
    for part in (slice(0, first), *(slice(t, t + 1) for t in range(first, ids.shape[1]))):
        out = model(
            ids[:, part], attention_mask=real[:, : part.stop], position_ids=at[:, part],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        cache = out.past_key_values
        found.append(out.logits[:, -1:])
    return torch.cat(found, 1).float()


def lost(model: Any, ids: Tensor, pads: Sequence[int]) -> float:
    """Largest difference of a row of the batch from the same row alone.

    In few bits a key at the edge of a budget goes either way by rounding, so that a tenth of the
    tokens may differ by more.
    """
    both = logits(model, ids, pads)
    alone = [logits(model, ids[r : r + 1, pad:], [0])[0] for r, pad in enumerate(pads)]
    apart = (both - torch.stack(alone)).abs().amax(-1).flatten()
    return float(apart.quantile(0.9) if model.dtype == torch.bfloat16 else apart.max())


def rows(count: int, seed: int) -> Tensor:
    return torch.randint(5, 60, (count, N), generator=torch.Generator().manual_seed(seed))


@functools.cache
def of_whole(dtype: torch.dtype, pads: tuple[int, ...]) -> float:
    """What the whole model loses in this dtype."""
    return max(lost(model_of(dtype), rows(len(pads), 1), pads), 1e-6)


def holds(name: str, keep: Any, dtype: torch.dtype, pads: tuple[int, ...]) -> None:
    """Hold a policy to what the whole model loses in this dtype, four times over."""
    model = model_of(dtype)
    try:
        shrunk = regard.shrink(model, prepared(name, model), keep=keep, check=False)
    except CapabilityError as error:
        assert "a share" in str(error)  # noqa: PT017
        pytest.skip("its budget is a share")
    whole = of_whole(dtype, pads)
    with shrunk:
        assert lost(model, rows(len(pads), 1), pads) <= 4 * whole


@tried
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_equal_length(name: str, keep: Any, dtype: torch.dtype) -> None:
    holds(name, keep, dtype, (0, 0))


@tried
@pytest.mark.parametrize("name", PADDED)
def test_rows_that_begin_with_padding(name: str, keep: Any, dtype: torch.dtype) -> None:
    holds(name, keep, dtype, (13, 30))


def test_what_counts_columns_says_so() -> None:
    """Policies that are let off the law above are those that differ, and no others."""
    model, pads = model_of(torch.float32), (13, 30)
    ids = rows(len(pads), 1)
    for name in sorted(set(NAMES) - set(PADDED)):
        settings: dict[str, Any] = {"residual": 8} if name == "quantized" else {}
        fields = known()[name].__dataclass_fields__
        settings |= {x: 4 for x in ("block", "page", "logical", "every") if x in fields}
        made = prepared(name, model, **settings)
        with regard.shrink(model, made, keep=0.3, check=False):
            assert lost(model, ids, pads) > 1e-5, name
