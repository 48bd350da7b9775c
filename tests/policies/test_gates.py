"""SeerAttention: keys before their rotation, gates that learn, and runs that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.policies import calibrate, policy
from regard.policies.calibration import read_calibration as read
from regard.policies.gates import Gate
from tests.architectures import DECODERS, build

TEXTS = [torch.randint(5, 60, (1, 64), generator=torch.Generator().manual_seed(i))
         for i in range(3)]  # fmt: skip


def model(name: str = "llama") -> Any:
    return build(name, DECODERS[name], causal=True)


def seer(**settings: Any) -> Any:
    return policy("seer_attention", block=8, steps=4, **settings)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "name", ["llama", "phi", "qwen2", "stablelm", "glm", "cohere", "gemma3_text"]
)
def test_gates_read_what_stood_before_the_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cached: bool
) -> None:
    # Gemma turns its layers differently; GLM and Cohere pair neighbors.
    made, ids = model(name), torch.cat(TEXTS[:2])
    path = calibrate(made, seer(), TEXTS, to=tmp_path / "gates")
    real = torch.ones_like(ids)
    real[0, :9] = 0
    at = (real.cumsum(1) - 1).clamp(min=0)
    wanted: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    for layer in made.model.layers:
        for x, own in wanted.items():
            last = getattr(layer.self_attn, f"{x}_norm", getattr(layer.self_attn, f"{x}_proj"))
            last.register_forward_hook(lambda _, __, out, own=own: own.append(out))
    found: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    scores = Gate.scores

    def noted(self: Gate, q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        found["q"].append(q)
        found["k"].append(k)
        return scores(self, q, k, *rest)

    monkeypatch.setattr(Gate, "scores", noted)
    with (
        regard.shrink(made, seer(least=1), keep=0.5, calibrate=path, check=False),
        torch.no_grad(),
    ):
        for own in wanted.values():
            own.clear()
        made(ids, real, at, use_cache=cached)
    for x in ("q", "k"):
        assert len(found[x]) == len(wanted[x]) == len(made.model.layers)
        for ours, theirs in zip(found[x], wanted[x], strict=True):
            heads = theirs if theirs.dim() == 4 else theirs.unflatten(2, (-1, ours.shape[3]))
            heads = heads if heads.shape[1] == ours.shape[1] else heads.transpose(1, 2)
            torch.testing.assert_close(ours, heads, atol=1e-5, rtol=1e-4)


def noted(one: Any) -> tuple[Any, list[torch.Tensor]]:
    """A policy that notes the tiles that it chooses."""
    chosen: list[torch.Tensor] = []
    plain = one.tiles

    def tiles(call: Any, keep: float) -> torch.Tensor:
        chosen.append(plain(call, keep) | one.always(call))
        return chosen[-1]

    one.tiles = tiles
    return one, chosen


def test_a_model_without_rotations_keeps_its_keys_as_they_are(tmp_path: Path) -> None:
    made = model("gpt2")
    path = calibrate(made, seer(), TEXTS, to=tmp_path / "gates")
    one, chosen = noted(seer(least=1))
    with regard.shrink(made, one, keep=0.5, calibrate=path, check=False):
        made(TEXTS[0])
    assert chosen
    assert not any(bool(x.tril().equal(torch.ones_like(x).tril())) for x in chosen)


def test_speeds_that_hang_on_the_length_are_told(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    made = build("llama", {**DECODERS["llama"], "rope_parameters": rope}, causal=True)
    with pytest.raises(RegardError, match="dynamic rotary positions"):
        calibrate(made, seer(), TEXTS, to=tmp_path / "gates")


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
    one, chosen = noted(seer(least=1))
    with (
        regard.shrink(made, one, keep=0.4, calibrate=path, check=False),
        torch.no_grad(),
    ):
        made(ids)
    share = sum(float(x.tril().sum() / torch.ones_like(x).tril().sum()) for x in chosen)
    assert 0.3 < share / len(chosen) < 0.8  # the first column, the diagonal and the last row too


def test_gates_are_asked_for() -> None:
    with pytest.raises(RegardError, match=r"regard\.policies\.calibrate"):
        regard.shrink(model(), seer(), keep=0.5, check=False)
