"""LongHeads on a model: pieces, steps and beams agree, and what it cannot do it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.call import Call
from regard.core.errors import CapabilityError
from regard.models import Stage
from regard.models.attach import attach
from regard.policies.long_heads import LongHeads
from regard.policies.shrinking import Shrinking
from tests.architectures import DECODERS, build

IDS = torch.randint(5, 60, (2, 90), generator=torch.Generator().manual_seed(0))
NEW: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module", params=["llama", "cohere", "gemma3_text"])
def model(request: Any) -> Any:
    torch.manual_seed(1)
    return build(request.param, DECODERS[request.param], causal=True)


def shrunk(model: Any, keep: Any = 32) -> Any:
    return regard.shrink(model, LongHeads(chunk=8), keep=keep, check=False)


@torch.no_grad()
def test_pieces_and_steps_give_what_the_whole_gives(model: Any) -> None:
    with shrunk(model):
        whole = model(IDS).logits
        for size in (1, 7, 40):
            cache, outs = None, []
            for piece in IDS.split(size, 1):
                out = model(piece, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                outs.append(out.logits)
            torch.testing.assert_close(torch.cat(outs, 1), whole, atol=1e-4, rtol=0)


@torch.no_grad()
def test_later_tokens_change_nothing_before(model: Any) -> None:
    other = IDS.clone()
    other[:, 61:] = 7
    with shrunk(model):
        a, b = model(IDS).logits, model(other).logits
    torch.testing.assert_close(a[:, :61], b[:, :61], atol=1e-5, rtol=0)


def test_beams_and_rows_go_on(model: Any) -> None:
    with shrunk(model):
        both = model.generate(IDS, **NEW, num_beams=2)
        alone = model.generate(IDS[1:], **NEW, num_beams=2)
    assert torch.equal(both[1], alone[0])


def test_less_is_read_than_all() -> None:
    torch.manual_seed(1)
    model = build("llama", DECODERS["llama"], causal=True)
    with shrunk(model) as made, torch.no_grad():
        cache = model(IDS).past_key_values
        before = made.report().flops
        model(IDS[:, :1], past_key_values=cache)
        step = made.report().flops - before
    # The 91st token reads four chunks, of which its own is masked behind it: 32 keys of 91. To
    # choose them it compares the query with the landmarks of eleven full chunks.
    assert step == 2 * 2 * 4 * 2.0 * ((8 + 8) * 32 + 8 * 11)


def test_padding_is_refused_where_it_would_matter(model: Any) -> None:
    real = torch.ones_like(IDS)
    real[0, :9] = 0
    short = {"attention_mask": real[:, :20], "pad_token_id": 0, **NEW, "max_new_tokens": 5}
    plain = model.generate(IDS[:, :20], **short)
    with shrunk(model):
        assert torch.equal(model.generate(IDS[:, :20], **short), plain)
        with pytest.raises(CapabilityError, match="padding"):
            model.generate(IDS, attention_mask=real, pad_token_id=0, **NEW)


class Look(Stage):
    """Want the weights."""

    want = ("weights",)


class Steer(Stage):
    """Sharpen the scores."""

    def before(self, call: Call) -> Call:
        return call.replace(q=call.q * 2)


@pytest.mark.parametrize("beside", [Look, Steer])
def test_stages_beside_it_are_refused_in_long_texts(beside: type[Stage]) -> None:
    model = build("llama", DECODERS["llama"], causal=True)
    stage = Shrinking([LongHeads(chunk=8)], 32)
    with attach(model, [stage, beside()], check=False), torch.no_grad():
        model(IDS[:, :20])
        with pytest.raises(CapabilityError, match="another stage"):
            model(IDS)


def test_positions_that_cannot_be_taken_out_are_refused() -> None:
    made = build("gpt2", DECODERS["gpt2"], causal=True)
    with pytest.raises(CapabilityError, match="renumbered"):
        regard.shrink(made, "longheads", check=False)
