"""Iterative forward tuning: update the keys and values of examples by reading them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import CapabilityError, ValueRangeError, fail, need, shape_of
from regard.core.method import method

Stored = list[tuple[Tensor, Tensor]]


@method(
    "deep_thinking_icl",
    call="from regard.controls.deep_thinking import think\n"
    "cache = think(model, examples, rounds=10)  # model(query, past_key_values=cache)",
)
@torch.no_grad()
def think(
    model: Any, ids: Tensor, *, rounds: int = 10, step: float = 0.01, momentum: float = 0.9,
    same_positions: bool = False,
) -> Any:  # fmt: skip
    """Return a cache of examples [b, n] that were read `rounds` times, for a query to attend to.

    Round 1 is an ordinary prefill. Each further one reads the same tokens again, with the cache:
    keys and values X move by `step` times m, where m = new - X at first and then
    (new - X) + `momentum` m. A step of 0, or one round, gives the ordinary cache, bit for bit.
    Tokens that are read again get positions after the cached ones, or the same ones
    (`same_positions`).
    (Iterative forward tuning, Yang et al. 2023)
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        fail(ValueRangeError, "ids", shape_of(ids), "ids [b, n]", "pass the tokens of the examples")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        fail(ValueRangeError, "rounds", shape_of(rounds), "a whole number from 1", "pass rounds=10")
    if not 0 <= momentum < 1:
        fail(ValueRangeError, "momentum", momentum, "0 up to below 1", "pass momentum=0.9")
    n = ids.shape[1]
    stored = _stored(model(ids, use_cache=True).past_key_values, 0, n)
    pace: Stored = []
    for _ in range(rounds - 1):
        given = {"position_ids": torch.arange(n, device=ids.device)[None]} if same_positions else {}
        cache = model(ids, past_key_values=_cache(stored), use_cache=True, **given).past_key_values
        new = _stored(cache, n, 2 * n)
        gaps = [(k - x, v - y) for (k, v), (x, y) in zip(new, stored, strict=True)]
        pace = gaps if not pace else [
            (a + momentum * c, b + momentum * d)
            for (a, b), (c, d) in zip(gaps, pace, strict=True)
        ]  # fmt: skip
        if step:
            stored = [
                (x + step * a, y + step * b) for (x, y), (a, b) in zip(stored, pace, strict=True)
            ]
    return _cache(stored)


def _stored(cache: Any, start: int, stop: int) -> Stored:
    """Copy the keys and values of tokens from a cache."""
    layers = getattr(cache, "layers", None)
    if layers is None or any(not isinstance(getattr(x, "keys", None), Tensor) for x in layers):
        fail(
            CapabilityError, "model", f"a cache of kind {type(cache).__name__}",
            "a cache of keys and values", "take a decoder with a dynamic cache",
        )  # fmt: skip
    return [(x.keys[:, :, start:stop].clone(), x.values[:, :, start:stop].clone()) for x in layers]


def _cache(stored: Stored) -> Any:
    transformers: Any = need("transformers", "hf", "keeps keys and values")
    cache = transformers.DynamicCache()
    for layer, (k, v) in enumerate(stored):
        cache.update(k.clone(), v.clone(), layer)
    return cache
