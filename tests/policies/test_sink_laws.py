"""First tokens that a policy promises to keep stay, however a prompt comes; over all policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import regard
from regard.policies import known
from tests.architectures import sharp_llama
from tests.policies.test_laws import prepared

SINKS, N = 3, 90
PADS = (0, 37, 16, 62)
KEEPING = sorted(
    {
        kind.name
        for kind in known().values()
        if kind.what != "images" and "sinks" in {f.name for f in dataclasses.fields(kind)}
    }
)


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 16])
@pytest.mark.parametrize("keep", [0.25, 20])
@pytest.mark.parametrize("name", KEEPING)
def test_sinks_stay_though_pieces_begin_with_padding(name: str, keep: Any, piece: int) -> None:
    if name in ("duo_attention", "moa_sparse", "s2") and isinstance(keep, int):
        pytest.skip("its budget is a share")
    model = sharp_llama(2)
    ids = torch.randint(5, 60, (len(PADS), N), generator=torch.Generator().manual_seed(0))
    real = (torch.arange(N) >= torch.tensor(PADS)[:, None]).long()
    made = prepared(name, model, sinks=SINKS)
    with regard.shrink(model, made, keep=keep, check=False) as shrunk:
        cache = None
        for end in range(piece, N + piece, piece):
            end = min(end, N)
            part = ids[:, end - piece if end < N else (N - 1) // piece * piece : end]
            cache = model(part, attention_mask=real[:, :end], past_key_values=cache).past_key_values
        for layer in shrunk.stage.layers:
            at = layer.memory.read().positions
            if at is None:
                continue
            at = at[:, None] if at.dim() == 2 else at
            for row, pad in enumerate(PADS):
                for place in range(pad, pad + SINKS):
                    assert bool((at[row] == place).any(-1).all()), (row, place, at[row])
