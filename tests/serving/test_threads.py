"""Threads that think together: what is said step by step is one forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from tests.architectures import DECODERS, build


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def model(request: Any) -> Any:
    torch.manual_seed(0)
    return build(request.param, DECODERS[request.param], causal=True)


def whole(model: Any, prompt: list[int], ids: list[list[int]], budget: int) -> dict[Any, Any]:
    """Scores after each token, of one forward over all of them, thread after thread."""
    said = [(None, k, t) for k, t in enumerate(prompt)]
    said += [(n, k, t) for n, own in enumerate(ids) for k, t in enumerate(own)]
    n = len(said)
    mask = torch.full((1, 1, n, n), torch.finfo(torch.float32).min)
    for i, (me, now, _) in enumerate(said):
        for j, (you, then, _) in enumerate(said):
            if me is None:
                seen = you is None and then <= now
            else:
                seen = you is None or then < now or (you == me and then == now)
            if seen:
                mask[0, 0, i, j] = 0
    places = [k if who is None else len(prompt) + who * budget + k for who, k, _ in said]
    with torch.no_grad():
        logits = model(
            torch.tensor([[t for _, _, t in said]]), attention_mask=mask,
            position_ids=torch.tensor([places]),
        ).logits[0]  # fmt: skip
    return {(who, k): logits[i] for i, (who, k, _) in enumerate(said)}


@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=3), budget=st.integers(4, 7),
    seed=st.integers(0, 99), stops=st.booleans(),
)  # fmt: skip
def test_steps_are_one_forward(
    model: Any, lengths: list[int], budget: int, seed: int, stops: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    prompt = torch.randint(3, 60, (5,), generator=draw).tolist()
    headers = [torch.randint(3, 60, (n,), generator=draw).tolist() for n in lengths]
    heard: dict[Any, Any] = {}

    def choose(scores: torch.Tensor, said: list[list[int]]) -> list[int]:
        for n, own in enumerate(said):
            heard.setdefault((n, len(own) - 1), scores[n].clone())
        return torch.randint(3, 6, (len(said),), generator=draw).tolist()

    stop = 3 if stops else None
    threads = regard.think_together(model, prompt, headers, budget=budget, choose=choose, stop=stop)
    steps = list(threads)
    for n, own in enumerate(threads.ids):
        assert own[: lengths[n]] == headers[n]
        assert own == [step[n] for step in steps if n in step]
        assert len(own) == budget or own[-1] == stop
    expected = whole(model, prompt, threads.ids, budget)
    checked = [key for key in heard if key[1] >= 0]
    assert checked
    for key in checked:
        torch.testing.assert_close(heard[key], expected[key], atol=1e-4, rtol=0)


def test_one_thread_is_plain_decoding(model: Any) -> None:
    prompt = [5, 6, 7, 8]
    plain = model.generate(
        torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0, 4:]  # fmt: skip
    threads = regard.think_together(model, prompt, [[]], budget=9)
    list(threads)
    assert threads.ids == [plain.tolist()]


def test_wrong_uses_are_told(model: Any) -> None:
    window = build("mistral", DECODERS["mistral"], causal=True)
    wrong: list[Any] = [
        lambda: regard.think_together(window, [3], [[4]]),
        lambda: regard.think_together(model, [3], []),
        lambda: regard.think_together(model, [3], [[4] * 9], budget=8),
        lambda: regard.think_together(model, [3], [[4]] * 3, budget=64),
        lambda: regard.think_together(model, "a text", [[4]]),
        lambda: regard.think_together(model, [3], ["a text"], budget=4),
        lambda: regard.think_together(model, [3], [[4]], budget=4).texts(),
    ]
    for use in wrong:
        with pytest.raises(RegardError):
            use()
