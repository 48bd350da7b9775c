"""Policies that guess what later queries will ask keep what their equations say, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import regard
from regard.core.errors import RegardError
from regard.models.attach import attach
from regard.models.stage import Stage
from regard.policies import calibrate, policy
from tests.architectures import sharp_llama

N, SHARE = 90, 0.3
IDS = torch.randint(5, 60, (1, N), generator=torch.Generator().manual_seed(3))


class Noting(Stage):
    """Keep the calls of a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def see(self, call: Any, result: Any) -> None:
        self.calls.append(call)


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp_llama(3).double()


@pytest.fixture(scope="module")
def rotary() -> Any:
    """A model whose rotations, which are made in float32, are found to be exact."""
    return sharp_llama(3)


@torch.no_grad()
def calls_of(model: Any, ids: Tensor = IDS) -> list[Any]:
    noting = Noting()
    with attach(model, [noting], check=False):
        model(ids, use_cache=False)
    return noting.calls


@torch.no_grad()
def kept_by(model: Any, made: Any, keep: Any = SHARE) -> list[Tensor]:
    """Positions [g, c] that each layer keeps of the prompt."""
    with regard.shrink(model, made, keep=keep, check=False) as shrunk:
        model(IDS)
        return [layer.memory.positions[0] for layer in shrunk.stage.layers]


def best(score: Tensor, count: int) -> list[set[int]]:
    return [set(row.topk(count).indices.tolist()) for row in score]


def check(kept: list[Tensor], scores: list[Tensor], count: int) -> None:
    for layer, (own, score) in enumerate(zip(kept, scores, strict=True)):
        assert [set(row.tolist()) for row in own] == best(score, count), f"layer {layer}"


def turn(at: Tensor, d: int, base: float) -> Tensor:
    """The rotation of a head at places [t], as matrices [t, d, d], written out."""
    made = torch.zeros(len(at), d, d, dtype=torch.float64)
    for c in range(d // 2):
        angle = at.double() * base ** (-2 * c / d)
        made[:, c, c] = made[:, c + d // 2, c + d // 2] = angle.cos()
        made[:, c, c + d // 2], made[:, c + d // 2, c] = -angle.sin(), angle.sin()
    return made


@pytest.mark.parametrize("covariance", [True, False])
def test_expected_attention_is_its_equation(rotary: Any, covariance: bool) -> None:
    model = rotary
    ahead, sinks, scores = 20, 4, []
    base = float(model.config.rope_parameters["rope_theta"])
    for call in calls_of(model):
        q, k, v, d = call.q[0].double(), call.k[0].double(), call.v[0].double(), call.d
        bare = torch.einsum("hne,ned->hnd", q, turn(torch.arange(N), d, base))[:, sinks:]  # undone
        average = turn(torch.arange(N, N + ahead), d, base).mean(0)
        mean = bare.mean(1) @ average.T
        apart = bare - bare.mean(1, keepdim=True)
        spread = average @ (apart.mT @ apart / apart.shape[1]) @ average.T
        keys = k.repeat_interleave(call.h // call.g, 0)[:, sinks:]
        s = torch.einsum("hd,hmd->hm", mean, keys) / d**0.5
        if covariance:
            s = s + torch.einsum("hmd,hde,hme->hm", keys, spread, keys) / d / 2
        weight = s.softmax(-1).unflatten(0, (call.g, -1)).mean(1)
        worth = weight * v[:, sinks:].norm(dim=-1)
        scores.append(torch.nn.functional.pad(worth, (sinks, 0), value=torch.inf))
    made = policy("expected_attention", ahead=ahead, sinks=sinks, covariance=covariance)
    check(kept_by(model, made), scores, 27)


def test_finch_is_its_equation(model: Any) -> None:
    w, scores = 8, []
    for call in calls_of(model):
        keys = call.k[0].repeat_interleave(call.h // call.g, 0)
        s = call.q[0, :, -w:] @ keys.mT / call.d**0.5
        at = torch.arange(N)
        s = s.masked_fill(at > at[-w:, None], -torch.inf).softmax(-1) * at[-w:, None]
        votes = s.mean(1).unflatten(0, (call.g, -1)).mean(1)
        votes[:, -w:] = torch.inf
        scores.append(votes)
    check(kept_by(model, policy("finch", window=w)), scores, 27)


def test_finch_scores_few_queries_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept_by(model, policy("finch", window=16))
    monkeypatch.setattr("regard.policies.finch.FEW", 1)
    for a, b in zip(kept_by(model, policy("finch", window=16)), whole, strict=True):
        assert torch.equal(a, b)


def test_q_filters_are_the_first_direction_of_queries(model: Any, tmp_path: Path) -> None:
    texts = [torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(i))
             for i in range(3)]  # fmt: skip
    queries = [[call.q[0] for call in calls_of(model, text)] for text in texts]
    scores, keys = [], [call.k[0] for call in calls_of(model)]
    for layer, k in enumerate(keys):
        filters = []
        for q in torch.cat([found[layer] for found in queries], 1):
            u, _, v = torch.linalg.svd(q, full_matrices=False)
            filters.append(v[0] * u[:, 0].sum().sign())
        own = torch.stack(filters).unflatten(0, (len(k), -1)).mean(1)
        scores.append(torch.einsum("gmd,gd->gm", k, own))
    file = calibrate(model, "q_filters", texts, to=tmp_path / "filters.cal")
    with (
        regard.shrink(model, "q_filters", keep=SHARE, calibrate=file, check=False) as shrunk,
        torch.no_grad(),
    ):
        model(IDS)
        check([x.memory.positions[0] for x in shrunk.stage.layers], scores, 27)


def test_q_filters_ask_for_a_calibration(model: Any) -> None:
    with pytest.raises(RegardError, match="calibrate"):
        regard.shrink(model, "q_filters", keep=SHARE)
    with pytest.raises(RegardError, match="calibrate"):
        regard.shrink(model, "q_filters", keep=40)


@pytest.mark.parametrize(("chunk", "sinks"), [(200, 0), (200, 4), (40, 3)])
def test_kvzip_is_its_equation(model: Any, chunk: int, sinks: int) -> None:
    """What is repeated is read with the whole cache, and scored over a part of it."""
    ask, overlap, found = (7, 8, 9), 5, []
    for start in range(0, N, chunk):
        stop, before = min(start + chunk, N), max(0, start - overlap)
        said = torch.cat((IDS, torch.tensor([ask]), IDS[:, before:stop]), 1)
        n = said.shape[1] - N
        for layer, call in enumerate(calls_of(model, said)):
            few = [*range(min(sinks, start)), *range(start, stop), *range(N, N + n)]
            keys = call.k[0, :, few].repeat_interleave(call.h // call.g, 0)
            s = call.q[0, :, N:] @ keys.mT / call.d**0.5
            s = s.masked_fill(torch.tensor(few) > torch.arange(N, N + n)[:, None], -torch.inf)
            most = s.softmax(-1).amax(1).unflatten(0, (call.g, -1)).amax(1)
            if start == 0:
                found.append([])
            found[layer].append(most[:, min(sinks, start) :][:, : stop - start])
    score = torch.stack([torch.cat(x, 1) for x in found])
    score[..., :sinks] = torch.inf
    best = set(score.flatten().topk(27 * score[..., 0].numel()).indices.tolist())
    made = policy("kvzip", chunk=chunk, sinks=sinks, overlap=overlap, ask=ask)
    kept = {
        (layer * score.shape[1] + head) * N + int(at)
        for layer, heads in enumerate(kept_by(model, made))
        for head, row in enumerate(heads)
        for at in row[row >= 0]
    }
    assert kept == best


def test_kvzip_counts_no_repetition_as_dense(model: Any) -> None:
    with regard.shrink(model, "kvzip", keep=SHARE, check=False) as shrunk, torch.no_grad():
        model(IDS)
        spent = list(shrunk.stage.costs.values())
    assert all(x.flops > 1.9 * x.dense > 0 for x in spent)


@pytest.mark.parametrize("name", ["expected_attention", "finch", "kvzip"])
def test_prompts_shorter_than_the_sinks_are_kept(name: str, rotary: Any) -> None:
    model = rotary
    with regard.shrink(rotary, name, keep=0.5, check=False), torch.no_grad():
        for n in (1, 2, 3, 5):
            assert model(IDS[:, :n]).logits.isfinite().all()
