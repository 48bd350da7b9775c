"""Passages read once equal one forward with the block mask, wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.errors import CapabilityError, RegardError
from regard.core.files import FileError
from regard.memories.blocks import TextBlock, TextBlocks
from regard.models.rotary import turns_of
from regard.serving.passages import Blockwise, Passages
from tests.architectures import DECODERS, GPT2, build

# Halves, neighbors, part of a head, two speeds, a window, sinks and scaled rotations.
TURNED = ["llama", "qwen3", "gemma3_text", "cohere", "glm", "phi", "mistral", "gpt_oss", "olmo2"]
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = {**(GPT2 if name == "bloom" else DECODERS[name]), **changes}
    return build(name, config, causal=True)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: made(name) for name in [*TURNED, "bloom"]}


def texts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 60, (n,), generator=draw).tolist() for n in lengths]


@pytest.mark.parametrize("name", TURNED)
@given(lengths=LENGTHS, last=st.integers(1, 6), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_cached_prompt_is_one_forward_with_the_block_mask(
    name: str, models: dict[str, Any], lengths: list[int], last: int, seed: int
) -> None:
    model = models[name]
    *texts, question = texts_of([*lengths, last], seed)
    passages = Passages(model)
    for order in (texts, texts[::-1]):
        inputs = passages.inputs(order, question)
        stage = Blockwise([*map(len, order), last])
        with regard.attach(model, stage, check=False):
            whole = model(inputs["input_ids"], use_cache=False).logits[:, -last:]
        ours = model(inputs["input_ids"][:, -last:], past_key_values=inputs["past_key_values"])
        torch.testing.assert_close(ours.logits, whole, atol=1e-4, rtol=0)
    assert passages.encoded <= sum(lengths)


@torch.no_grad()
def test_a_bias_by_distance_needs_no_turning(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lengths = models["bloom"], [7, 4, 9, 5]
    *texts, question = texts_of(lengths)
    passages = Passages(model)
    assert passages.turns.none
    inputs = passages.inputs(texts, question)
    ours = model(inputs["input_ids"][:, -5:], past_key_values=inputs["past_key_values"]).logits
    met = regard.serving.passages.blocks_of(lengths).matrix(25)[:1, :1]
    mask = torch.zeros(met.shape).masked_fill(~met, torch.finfo(torch.float32).min)
    home = "transformers.models.bloom.modeling_bloom.create_causal_mask"
    monkeypatch.setattr(home, lambda **_: mask)
    torch.testing.assert_close(ours, model(inputs["input_ids"]).logits[:, -5:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_generating_goes_on_from_the_cache(models: dict[str, Any]) -> None:
    model = models["llama"]
    *texts, question = texts_of([12, 5, 8])
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    new = Passages(model).generate(texts, question, **how)
    ids = torch.tensor([[*texts[0], *texts[1], *question]])
    for token in new.tolist():
        stage = Blockwise([12, 5, ids.shape[1] - 17])
        with regard.attach(model, stage, check=False):
            assert int(model(ids).logits[0, -1].argmax()) == token
        ids = torch.cat((ids, torch.tensor([[token]])), 1)


@pytest.mark.parametrize("name", ["gpt2", "opt", "t5"])
def test_added_positions_are_refused(name: str) -> None:
    from tests.architectures import PAIRS

    torch.manual_seed(0)
    model = build(name, {**DECODERS, **PAIRS}[name], causal=name != "t5")
    with pytest.raises(RegardError, match="model"):
        Passages(model)


def test_speeds_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(CapabilityError, match="dynamic rotary"):
        turns_of(made("llama", rope_parameters=rope))


@torch.no_grad()
def test_half_precision_stays_close(models: dict[str, Any]) -> None:
    model = made("llama").bfloat16()
    *texts, question = texts_of([20, 15, 9])
    inputs = Passages(model).inputs(texts, question)
    ours = model(inputs["input_ids"][:, -9:], past_key_values=inputs["past_key_values"]).logits
    exact = model.float()
    with regard.attach(exact, Blockwise([20, 15, 9]), check=False):
        whole = exact(inputs["input_ids"]).logits[:, -9:]
    wrong = (ours.float() - whole).abs().max()
    assert wrong < 0.1 * whole.abs().max()


def test_blocks_stay_in_a_folder_and_in_a_file(models: dict[str, Any], tmp_path: Path) -> None:
    model, (text, question) = models["llama"], texts_of([12, 3])
    first = Passages(model, folder=tmp_path / "blocks")
    first.inputs([text], question)
    assert first.blocks.file_bytes > first.blocks.nbytes > 0
    second = Passages(model, folder=tmp_path / "blocks")
    second.inputs([text], question)
    assert (second.encoded, second.reused) == (0, 12)
    third = Passages(model)
    third.load(first.save(tmp_path / "all"))
    third.inputs([text], question)
    assert (third.encoded, third.reused) == (0, 12)
    with pytest.raises(FileError, match="another model"):
        Passages(models["qwen3"]).load(tmp_path / "all")
    with pytest.raises(FileError, match="another model"):
        Passages(models["qwen3"], folder=tmp_path / "blocks").blocks.find(
            first.blocks.name(text)
        )  # fmt: skip


@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=30), room=st.integers(1, 6))
def test_the_longest_unused_block_goes_first(order: list[int], room: int) -> None:
    each = 2 * 4 * 4
    blocks = TextBlocks(limit=room * each)
    recent: list[int] = []
    for number in order:
        name = blocks.name([number])
        assert (blocks.find(name) is not None) == (number in recent)
        if number not in recent:
            k, v = torch.randn(2, 1, 1, 2, 2)
            blocks.keep(name, TextBlock((k.clone(),), (v.clone(),)))
        recent = [*(x for x in recent if x != number), number][-room:]
        assert blocks.nbytes <= room * each


def test_what_is_no_text_is_told(models: dict[str, Any]) -> None:
    passages = Passages(models["llama"])
    for texts, question in ((["a word"], [3]), ([[]], [3]), ([[3]], [])):
        with pytest.raises(RegardError):
            passages.inputs(texts, question)
    assert passages.blocks.nbytes == 0
