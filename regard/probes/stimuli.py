"""Inputs for some probes: repeated tokens, and needles in haystacks."""

from __future__ import annotations

import random
from typing import Any

import torch

from regard.core.errors import CapabilityError, ValueRangeError, fail
from regard.probes.reading import Reading

# The question is asked in the words that hid the answer, as needle tests do.
TOLD = "\nThe pass key of {name} is {key}.\n"
ASKED = "\nWhat is the pass key of {name}?\nThe pass key of {name} is "
NAMES = ("silver", "harbor", "violin", "copper", "garden")


def repeated(
    vocabulary: int, *, first: int | None = None, period: int = 64, times: int = 2,
    rows: int = 4, seed: int = 0,
) -> Reading:  # fmt: skip
    """Build repeated random tokens, after a start token if there is one.

    >>> repeated(100, period=8, rows=2).tokens.shape
    torch.Size([2, 16])
    """
    if period < 2 or times < 2:
        fail(ValueRangeError, "period, times", (period, times), "at least 2 each", "show a repeat")
    draw = torch.Generator().manual_seed(seed)
    low = min(16, vocabulary // 4)  # the first ids are often special tokens
    stretch = torch.randint(low, vocabulary, (rows, period), generator=draw)
    tokens = stretch.repeat(1, times)
    if first is not None:
        tokens = torch.cat([torch.full((rows, 1), first), tokens], 1)
    return Reading({"input_ids": tokens}, period=period)


def needle(
    tokenizer: Any, haystack: str, *, length: int = 512, depth: float = 0.5, seed: int = 0
) -> Reading:
    """A pass key hidden in text at a depth, asked for at the end and answered (spans: both)."""
    if not 0 <= depth <= 1:
        fail(ValueRangeError, "depth", depth, "a share from 0 (the start) to 1", "take 0.5")
    rng = random.Random(seed)
    name, key = rng.choice(NAMES), "".join(rng.choices("0123456789", k=5))

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    before, _, after = TOLD.format(name=name, key=key).partition(key)
    parts = [ids(before), ids(key), ids(after)]
    question, answer = ids(ASKED.format(name=name)), ids(key)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - sum(map(len, (*parts, question, answer, start)))
    text = ids(haystack)
    if room < 8 or not text:
        fail(
            CapabilityError, "length", length,
            f"more than {length - room + 8} tokens and some text", "give a longer haystack",
        )  # fmt: skip
    text = (text * (room // len(text) + 1))[:room]
    cut = int(depth * room)
    tokens = [*start, *text[:cut]]
    tokens += parts[0]
    hidden = slice(len(tokens), len(tokens) + len(parts[1]))
    tokens += [*parts[1], *parts[2], *text[cut:], *question]
    said = slice(len(tokens), len(tokens) + len(answer))
    tokens += answer
    return Reading(
        {"input_ids": torch.tensor([tokens])}, spans={"needle": hidden, "answer": said},
        words=[tokenizer.decode([t]) for t in tokens],
    )  # fmt: skip
