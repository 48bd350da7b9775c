"""On a GPU no policy mixes what it makes itself with what it is given, which lies there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.policies import policy
from tests.architectures import DECODERS, build
from tests.pretend import Pretend, on_gpu

SMALL = {"block": 16}
NAMES: dict[str, dict[str, Any]] = {
    "a_shape": SMALL, "vertical_slash": SMALL, "block_sparse": SMALL, "hip": SMALL,
    "minference": SMALL, "moba": {}, "s2": {}, "quest": {}, "double_sparsity": {}, "recycled": {},
    "quantized": {}, "low_rank": {}, "offloaded": {}, "snapkv": {}, "pyramid_kv": {}, "ada_kv": {},
    "h2o": {}, "tova": {}, "knorm": {}, "keydiff": {}, "streaming": {}, "random": {}, "chai": {},
    "longheads": {}, "remote_attention": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    return on_gpu(build("llama", {**DECODERS["llama"], "num_hidden_layers": 2}, causal=True))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_all_is_made_where_the_model_is(name: str, model: Any) -> None:
    ids = torch.randint(5, 60, (1, 200))
    with regard.shrink(model, policy(name, **NAMES[name]), keep=0.3, check=False), Pretend():
        cache = model(on_gpu(ids[:, :180].clone())).past_key_values
        for t in range(180, 183):
            model(on_gpu(ids[:, t : t + 1].clone()), past_key_values=cache)


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
