"""Quality of a shrunk model against the memory that it keeps: needles, recall, bits per byte.

Every number comes from decoding one token at a time after a prompt, so that policies that act when
decoding, at the end of a prompt, or within a prompt all take effect.
"""

from __future__ import annotations

import copy
import inspect
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.bench.kept_cells import KeptCells, hash_of_policy
from regard.bench.shrunk_cells import Cell, as_fields, cell_of
from regard.bench.shrunk_costs import costs
from regard.bench.shrunk_texts import Spoken, divergence
from regard.bench.statistics import Count
from regard.core.errors import CapabilityError, RegardError, RuleError, ValueRangeError, fail
from regard.core.hashes import hash_of, hash_of_code
from regard.models.fingerprint import fingerprint
from regard.policies.base import Policy
from regard.policies.budget import Budget
from regard.policies.registry import policy
from regard.probes.stimuli import ASKED, NAMES, TOLD, needle
from regard.verbs import shrink

BUDGETS = (0.05, 0.1, 0.25, 0.5, 0.75)
# Policies that share by a fixed map, whatever the budget.
UNBUDGETED = ("kv_sharer", "shared_weights", "pod")
MEASURES = ("needle", "recall", "bits")
# How the reason begins if a policy crashed instead of refusing.
BROKE = "it broke with"


@dataclass(frozen=True)
class Setting:
    """The size of the tests: tokens in a prompt, prompts for each depth, rows of text."""

    length: int = 1024
    depths: tuple[float, ...] = (0.1, 0.5, 0.9)
    draws: int = 4
    keys: int = 4
    texts: int = 8
    steps: int = 64


def haystack() -> str:
    """Return text that every machine has: sources of the standard library."""
    import argparse
    import difflib
    import textwrap

    return "\n".join(inspect.getsource(x) for x in (argparse, difflib, inspect, textwrap))


def _cut(start: int, size: int, text: str | None = None) -> str:
    """Return `size` characters of the text from `start` on, wrapping around at its end."""
    text = haystack() if text is None else text
    return (text * 2)[start % len(text) :][:size]


def measure(
    model: Any, tokenizer: Any, made: Policy | None, keep: Any, asked: Sequence[str],
    setting: Setting, full: Spoken | None = None,
) -> Cell:  # fmt: skip
    """Measure one policy at one budget (no policy: the full model).

    `full` holds the full model's log-probabilities of the texts, computed if not given.
    """
    began = time.perf_counter()
    name = "full" if made is None else made.name
    label = None if keep is None else Budget.of(keep).label
    found: dict[str, Any] = {}
    full = full_text(model, tokenizer, setting) if full is None else full
    prompt = texts(tokenizer, setting.length)
    with torch.no_grad():
        # Before anything is attached: the reference is the bare model.
        words = full.words if "bits" in asked else None
        if made is None:
            found = _measured(model, tokenizer, asked, setting, full)
            found |= {} if words is None else {"kl": 0.0}
            spent = _fields(costs(model, prompt))
            return Cell(name, None, **found, bytes=1.0, flops=1.0, **spent, seconds=_since(began))
        # A policy without a budget gets any but 1.0, which would mean to change nothing.
        with shrink(model, made, keep=0.5 if keep is None else keep, check=False) as shrunk:
            own = full_text(model, tokenizer, setting)
            found = _measured(model, tokenizer, asked, setting, own)
            if words is not None:
                found["kl"] = divergence(words, own.words)
            model(prompt[:, :-1])
            report = shrunk.report()
            spent = _fields(costs(model, prompt))
        share = report.flops / report.dense_flops
    return Cell(
        name, label, **found, bytes=report.bytes / report.full_bytes, flops=share, **spent,
        seconds=_since(began),
    )  # fmt: skip


def _fields(one: Any) -> dict[str, Any]:
    return {x.name: getattr(one, x.name) for x in fields(one)}


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 2)


def need_measures(asked: Sequence[str]) -> None:
    """Raise unless every measure is one of MEASURES."""
    if not asked:
        fail(RuleError, "eval", "none", f"some of {', '.join(MEASURES)}", "name one at least")
    for one in asked:
        if one not in MEASURES:
            said = "bits, for bits per byte" if one in ("ppl", "perplexity") else "these"
            fail(RuleError, "eval", repr(one), f"some of {', '.join(MEASURES)}", f"name {said}")


def fit_positions(setting: Setting, positions: int | None, measures: Sequence[str]) -> None:
    """Raise if prompts are longer than the positions of a model, or too short to measure.

    >>> fit_positions(Setting(length=512), 2048, ["needle"])
    """
    if positions is not None and setting.length > positions:
        fail(
            ValueRangeError, "length", setting.length,
            f"at most {positions}, the positions that the model was made for",
            f"pass {positions}, or a model of more positions",
        )  # fmt: skip
    least = {"needle": 96, "recall": 160, "bits": setting.steps + 8}
    short = max(least[one] for one in measures)
    if setting.length < short:
        fail(
            ValueRangeError, "length", setting.length,
            f"at least {short} tokens, to measure {', '.join(measures)}", "take longer prompts",
        )  # fmt: skip
    if setting.draws < 1:
        fail(ValueRangeError, "draws", setting.draws, "at least 1", "leave it out for 4")


def _measured(
    model: Any, tokenizer: Any, asked: Sequence[str], setting: Setting, read: Spoken
) -> dict[str, Any]:
    need_measures(asked)
    found: dict[str, Any] = {}
    for one in asked:
        if one == "needle":
            found["needle"] = needles(model, tokenizer, setting)
        elif one == "recall":
            found["recall"] = recall(model, tokenizer, setting)
        else:
            found["bits"] = read.bits
    return found


def said(model: Any, prompt: Tensor, count: int, cache: Any = None) -> list[int]:
    """Decode tokens greedily after a prompt [1, n], one at a time."""
    out = model(prompt, past_key_values=cache, use_cache=True)
    tokens: list[int] = []
    for _ in range(count):
        token = out.logits[:, -1:].argmax(-1)
        tokens.append(int(token))
        if len(tokens) < count:
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
    return tokens


def needles(model: Any, tokenizer: Any, setting: Setting) -> Count:
    """Count pass keys recalled, asked for at the end of the prompt that hides them."""
    right = total = 0
    text = haystack()
    for depth in setting.depths:
        for draw in range(setting.draws):
            start = 2000 * (draw + 1)
            reading = needle(
                tokenizer, text[start : start + 8 * setting.length], length=setting.length,
                depth=depth, seed=draw,
            )  # fmt: skip
            assert reading.tokens is not None
            answer = reading.spans["answer"]
            ids, wanted = reading.tokens[:, : answer.start], reading.tokens[0, answer].tolist()
            right += said(model, ids, len(wanted)) == wanted
            total += 1
    return Count(right, total)


def recall(model: Any, tokenizer: Any, setting: Setting) -> Count:
    """Count which of several hidden keys are recalled, each asked for after the text was shrunk.

    No policy knows the question when it chooses what to keep.
    """
    right = total = 0
    for draw in range(setting.draws):
        ids, questions = keys_and_questions(tokenizer, setting, draw)
        cache = model(ids, use_cache=True).past_key_values
        for question, answer in questions:
            right += said(model, question, len(answer), copy.deepcopy(cache)) == answer
            total += 1
    return Count(right, total)


def keys_and_questions(
    tokenizer: Any, setting: Setting, seed: int, text: str | None = None, after: int = 0
) -> tuple[Tensor, list[tuple[Tensor, list[int]]]]:
    """Return a text that hides several keys, and for each its question [1, n] and its answer.

    `after` are tokens of the asked length that the caller uses behind the text.
    """
    rng = random.Random(seed)

    def ids_of(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])

    names = rng.sample(NAMES, setting.keys)
    facts = {name: "".join(rng.choices("0123456789", k=5)) for name in names}
    told = [ids_of(TOLD.format(name=n, key=k)) for n, k in facts.items()]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = setting.length - sum(map(len, told)) - len(start) - 24
    if room < 2:
        # Other draws have names and keys of a few tokens more.
        needed = 16 * ((setting.length - room + after) // 16 + 2)
        fail(
            ValueRangeError, "length", setting.length + after,
            f"about {needed} tokens or more, to hide {setting.keys} keys in",
            "take longer prompts, or fewer keys",
        )  # fmt: skip
    around = ids_of(_cut(3000 * (seed + 1), 8 * setting.length, text))[:room]
    for place, fact in zip(
        sorted((rng.randrange(1, room) for _ in told), reverse=True), told, strict=True
    ):
        around[place:place] = fact
    questions = [
        (torch.tensor([ids_of(ASKED.format(name=n))]), ids_of(k)) for n, k in facts.items()
    ]
    return torch.tensor([start + around]), questions


def pass_keys(
    tokenizer: Any, length: int = 512, rows: int = 16, keys: int = 4, text: str | None = None
) -> list[tuple[Tensor, int]]:
    """Return rows that hide pass keys in text and end with them: (ids [1, n], answer tokens)."""
    after = 24 * keys
    setting, found = Setting(length=length - after, keys=keys), []
    for seed in range(rows):
        ids, questions = keys_and_questions(tokenizer, setting, 100 + seed, text, after)
        tail = [x for q, answer in questions for x in (q, torch.tensor([answer]))]
        told = torch.cat(tail, 1)
        found.append((torch.cat((ids, told), 1), told.shape[1]))
    return found


def bits_per_byte(model: Any, tokenizer: Any, setting: Setting) -> float:
    """Return bits per byte of the last `steps` tokens of texts, read one at a time."""
    return full_text(model, tokenizer, setting).bits


def full_text(model: Any, tokenizer: Any, setting: Setting) -> Spoken:
    """Return the log-probabilities of the texts of a setting, computed on first use."""
    ids = texts(tokenizer, setting.length, setting.texts)
    return Spoken(model, tokenizer, ids, setting.steps)


def texts(tokenizer: Any, length: int, rows: int = 1, text: str | None = None) -> Tensor:
    """Return rows of text [rows, length], each after the start token where there is one."""
    text = haystack() if text is None else text
    found = tokenizer(text[: 8 * length * rows], add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    each = length - len(start)
    if len(found) < rows * each:
        found = found * (rows * each // len(found) + 1)
    return torch.tensor([start + found[i * each : (i + 1) * each] for i in range(rows)])


def curves(
    model: Any, tokenizer: Any, policies: Sequence[str | Callable[[], Policy]],
    budgets: Sequence[Any] = BUDGETS, asked: Sequence[str] = MEASURES,
    setting: Setting | None = None, kept_in: Path | None = None,
) -> Iterator[Cell]:  # fmt: skip
    """Measure policies at budgets, the full model first; skip the cells that a file already has.

    A policy without a budget (it stores) is measured once. One that does not support the model is a
    cell that says why, and is tried again the next time. A cell of the file is reused if the hashes
    of model, text, code, setting, and policy (with settings and calibration) are the same. A file
    of other inputs is moved to `older/`.
    """
    setting = Setting() if setting is None else setting
    _need_decoder(model)
    asks = asdict(setting)
    kept = None if kept_in is None else KeptCells(kept_in, {
        "model": fingerprint(model), "text": hash_of(haystack()), "code": hash_of_code(),
        "setting": asks, "asked": list(asked),
    })  # fmt: skip
    full = full_text(model, tokenizer, setting)
    todo: list[tuple[str, Any, Any]] = [("full", None, None)]
    for one in policies:
        made = policy(one) if isinstance(one, str) else one()
        label = one if isinstance(one, str) else made.name
        own = [None] if made.what == "stores" or made.name in UNBUDGETED else budgets
        todo += [(label, one, keep) for keep in own]
    for label, one, keep in todo:
        spelled = None if keep is None else Budget.of(keep).label
        try:
            fresh = None if one is None else policy(one) if isinstance(one, str) else one()
            of = hash_of_policy(fresh)
            name = "full" if fresh is None else fresh.name  # a policy may have several names
            row = None if kept is None else kept.find(name, spelled, of)
            if row is not None:
                yield cell_of(row, asks)
                continue
            cell = measure(model, tokenizer, fresh, keep, asked, setting, full)
        except RegardError as error:
            if one is None:
                raise
            yield Cell(label, spelled, refused=str(error))
            continue
        except Exception as error:  # a policy that crashes is a row too
            if one is None:
                raise
            first = (str(error).strip().splitlines() or [""])[0][:200]
            yield Cell(label, spelled, refused=f"{BROKE} {type(error).__name__}: {first}")
            continue
        if kept is not None:
            kept.add(as_fields(cell), of)
        yield cell


def _need_decoder(model: Any) -> None:
    """Raise unless a model generates text with a cache."""
    config = getattr(model, "config", None)
    generates = bool(getattr(model, "can_generate", lambda: False)())
    if not generates or getattr(config, "is_encoder_decoder", False):
        fail(
            CapabilityError, "model", f"{type(model).__name__}, which has no cache of its own text",
            "a decoder that generates text",
            "measure it from Python: with regard.shrink(model, ...) as shrunk: ...",
        )  # fmt: skip
