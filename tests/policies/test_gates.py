"""SeerAttention: keys before their rotation, gates that learn, and runs that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.memories.files import read
from regard.models.attach import attach
from regard.models.rotations import Rotations
from regard.models.stage import Stage
from regard.policies import calibrate, policy
from tests.architectures import DECODERS, build

TEXTS = [torch.randint(5, 60, (1, 64), generator=torch.Generator().manual_seed(i))
         for i in range(3)]  # fmt: skip


def model(name: str = "llama") -> Any:
    return build(name, DECODERS[name], causal=True)


def seer(**settings: Any) -> Any:
    return policy("seer_attention", block=8, steps=4, **settings)


class Calls(Stage):
    """Holds what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def observe(self, call: Any) -> None:
        self.calls.append(call)


@pytest.mark.parametrize("name", ["llama", "phi", "qwen2", "stablelm"])
def test_keys_turned_back_are_those_of_the_projection(name: str) -> None:
    made, ids = model(name), torch.cat(TEXTS[:2])
    real = torch.ones_like(ids)
    real[0, :9] = 0
    at = (real.cumsum(1) - 1).clamp(min=0)
    made_keys: list[torch.Tensor] = []
    layer = made.model.layers[0].self_attn.k_proj
    hook = layer.register_forward_hook(lambda _, __, out: made_keys.append(out))
    turns, calls = Rotations(made), Calls()
    with attach(made, [calls], check=False), torch.no_grad():
        made(ids, attention_mask=real, position_ids=at)
    hook.remove()
    k = calls.calls[0].k
    wanted = made_keys[0].view(2, 64, k.shape[1], -1).transpose(1, 2)
    assert turns.positions is not None
    torch.testing.assert_close(turns.back(k, turns.positions), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turns.forth(wanted, at), k, atol=1e-5, rtol=1e-4)
    turns.close()


def test_models_that_turn_otherwise_are_told(tmp_path: Path) -> None:
    for name in ("glm", "cohere", "gemma3_text"):
        with pytest.raises(RegardError, match=r"turn.* (differently|otherwise)"):
            calibrate(model(name), seer(), TEXTS, to=tmp_path / name)


def test_a_run_that_was_broken_off_gives_what_it_would_have_given(tmp_path: Path) -> None:
    whole = calibrate(model(), seer(), TEXTS, to=tmp_path / "whole")

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model(), seer(), TEXTS, to=tmp_path / "broken", progress=stop)
    path = calibrate(model(), seer(), TEXTS, to=tmp_path / "broken")
    a, b = read(whole)["found"]["gates"], read(path)["found"]["gates"]
    for layer, maps in a.items():
        for x, y in zip(maps, b[layer], strict=True):
            assert torch.equal(x, y)
            assert not x.requires_grad


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_threshold_of_nothing_is_dense_and_pieces_choose_as_the_whole(
    tmp_path: Path, pieces: int
) -> None:
    made, ids = model(), TEXTS[0]
    path = calibrate(made, seer(), TEXTS, to=tmp_path / "gates")
    cut = torch.tensor_split(ids, pieces, 1)
    with torch.no_grad():
        plain = made(ids).logits
    with (
        regard.shrink(made, seer(threshold=-1.0, least=1), keep=0.5, calibrate=path, check=False),
        torch.no_grad(),
    ):
        cache, found = None, []
        for piece in cut:
            out = made(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), plain, atol=1e-4, rtol=1e-4)
    with (
        regard.shrink(made, seer(least=1), keep=0.4, calibrate=path, check=False) as shrunk,
        torch.no_grad(),
    ):
        made(ids)
        report = shrunk.report()
    assert 0.3 < report.flops / report.dense_flops < 0.75


def test_gates_are_asked_for() -> None:
    with pytest.raises(RegardError, match=r"regard\.policies\.calibrate"):
        regard.shrink(model(), seer(), keep=0.5, check=False)
