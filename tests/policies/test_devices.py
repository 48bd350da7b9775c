"""On a GPU no policy mixes what it makes itself with what it is given, which lies there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.policies import known
from tests.architectures import DECODERS, build
from tests.policies.test_laws import every, prepared
from tests.pretend import Pretend, on_gpu


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    return on_gpu(build("llama", {**DECODERS["llama"], "num_hidden_layers": 2}, causal=True))


@torch.no_grad()
@every
def test_all_is_made_where_the_model_is(name: str, model: Any) -> None:
    ids = torch.randint(5, 60, (1, 200))
    fields = known()[name].__dataclass_fields__
    small = {x: n for x, n in (("block", 16), ("page", 16), ("residual", 8)) if x in fields}
    made = prepared(name, model, **small)
    with regard.shrink(model, made, keep=0.3, check=False), Pretend():
        cache = model(on_gpu(ids[:, :180].clone())).past_key_values
        for t in range(180, 183):
            model(on_gpu(ids[:, t : t + 1].clone()), past_key_values=cache)


@torch.no_grad()
@every
def test_so_it_is_for_rows_that_begin_with_padding(name: str, model: Any) -> None:
    ids = torch.randint(5, 60, (2, 90))
    real = torch.ones_like(ids)
    real[0, :21] = 0
    fields = known()[name].__dataclass_fields__
    small = {x: n for x, n in (("block", 8), ("page", 8), ("residual", 8)) if x in fields}
    with regard.shrink(model, prepared(name, model, **small), keep=0.3, check=False), Pretend():
        cache = None
        for part in (slice(0, 80), *(slice(t, t + 1) for t in range(80, 84))):
            cache = model(
                on_gpu(ids[:, part].clone()), past_key_values=cache,
                attention_mask=on_gpu(real[:, : part.stop].clone()),
            ).past_key_values  # fmt: skip


def test_what_is_made_elsewhere_is_found() -> None:
    x = on_gpu(torch.ones(2, 3))
    with Pretend():
        assert (x + torch.ones(2, 3, device="cpu") + 1.0).shape == (2, 3)  # as if with its device
        for wrong in (
            lambda: x + torch.ones(2, 3),
            lambda: torch.where(torch.ones(2, 3, dtype=torch.bool), x, 0.0),
            lambda: torch.arange(6)[x.long()],
            lambda: torch.cat((x.new_zeros(1, 3), torch.zeros(1, 3))),
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
