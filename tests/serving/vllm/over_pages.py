"""Run a model of transformers as a server would: every call over pages of its request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.core.call import Call
from regard.core.key_forms import Paged
from regard.core.result import Result
from regard.models.attach import hook_of
from regard.models.stage import Stage
from regard.run.runner import otherwise
from regard.serving.vllm.layer_rules import LayerRules
from regard.serving.vllm.served_requests import Serving, Setup
from regard.serving.vllm.server_settings import Settings
from tests.architectures import DECODERS, build

PAGE = 16


class OverPages(Stage):
    """Run every call as a server would: over pages, past what its request asked for."""

    runs = True

    def __init__(self, serving: Serving, name: str) -> None:
        super().__init__()
        self.serving, self.name_of = serving, name

    def around(self, call: Call, run: Any) -> Result:
        k, v = (in_pages(x) for x in (call.k, call.v))
        pages = torch.randperm(len(k[0]), generator=torch.Generator().manual_seed(call.m))
        table = pages.argsort()[None, None].int()
        keys = Paged(k[0][pages], v[0][pages], table, torch.tensor([[call.m]]), longest=call.m)
        rules = LayerRules(call.d**-0.5)
        one = Call(call.q, keys, rules.of(call.n, call.m), site=call.site)
        served = self.serving.requests[self.name_of]
        found = otherwise(call, "served", lambda: self.serving.attend(one, served, rules))
        assert found is not None
        return found


def in_pages(x: Tensor) -> Tensor:
    """Cut x [1, g, m, d] into pages [1, pages, g, PAGE, d]; what fills the last one up is NaN."""
    short = -x.shape[2] % PAGE
    filled = torch.nn.functional.pad(x, (0, 0, 0, short), value=torch.nan)
    return filled.unflatten(2, (-1, PAGE)).transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build("llama", DECODERS["llama"], causal=True)


@pytest.fixture
def ids(model: Any) -> Tensor:
    return torch.randint(3, model.config.vocab_size, (1, 90))


def serving(model: Any, said: str, ids: Tensor, **asked: Any) -> Serving:
    made = Serving(Settings.of(said))
    made.begin(model, hook_of(model)[1], Setup())
    made.arrive("r", asked, ids[0].tolist())
    return made


def generate(model: Any, ids: Tensor, pieces: int = 1, tokens: int = 12) -> list[int]:
    """Decode greedily; the prompt comes in pieces."""
    from transformers import DynamicCache

    cache, said = DynamicCache(), []
    with torch.no_grad():
        for piece in ids.tensor_split(pieces, 1):
            logits = model(piece, past_key_values=cache).logits
        for _ in range(tokens):
            said.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([said[-1:]]), past_key_values=cache).logits
    return said


def logits(model: Any, ids: Tensor, pieces: int) -> Tensor:
    """Logits of a prompt that comes in pieces, and of three tokens behind it, one by one."""
    from transformers import DynamicCache

    cache, text = DynamicCache(), (*ids.tensor_split(pieces, 1), *ids[:, :3].split(1, 1))
    with torch.no_grad():
        return torch.cat([model(x, past_key_values=cache).logits for x in text], 1)


def served(model: Any, one: Serving, ids: Tensor, pieces: int = 1) -> list[int]:
    with regard.attach(model, OverPages(one, "r"), check=False):
        return generate(model, ids, pieces)
