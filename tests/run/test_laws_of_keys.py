"""Laws of numbers over every form of keys, by every executor that can read it.

What no query may attend to may hold anything: slots that were not taken, empty slots, what lies
beyond the length of a page. And autocast ends at the door.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from regard.core.call import Call
from regard.core.key_forms import Paged
from regard.core.keys import Dense, Keys, Slots
from regard.run.plan import EXECUTORS, make_plan
from regard.run.runner import run
from tests.run.test_keys import FORMS, RULES, B, D, H


def readers(call: Call) -> Iterator[str | None]:
    """Every executor that can run a call, and the one that is chosen; flex compiles for seconds."""
    yield from (name for name in make_plan(call).considered if name != "flex")
    yield None


def unread(keys: Keys) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a tensor of keys or values, and where [..., 1] nobody reads it."""
    if isinstance(keys, Slots) and isinstance(keys.keys, Dense):
        inner = keys.keys
        taken = torch.zeros(inner.k.shape[:3], dtype=torch.bool)
        slots = keys.slots.expand(*inner.k.shape[:2], -1)
        real = slots >= 0
        taken.scatter_reduce_(2, slots.clamp(min=0), real, "amax")
        return [(x, ~taken[..., None]) for x in (inner.k, inner.v)] + unread(inner)
    if isinstance(keys, Paged):
        size = keys.k.shape[2]
        found = []
        for x in (keys.k, keys.v):
            beyond = torch.zeros(x.shape[:3], dtype=torch.bool)
            for row, length in zip(keys.table.flatten(0, 1), keys.lengths.flatten(), strict=True):
                place = torch.arange(len(row) * size).view(len(row), 1, size)
                beyond[row] = (place >= length).expand(-1, x.shape[1], -1)
            found.append((x, beyond[..., None]))
        return found
    if isinstance(keys, Dense) and keys.placed:
        at = keys.positions
        at = at.view(B, 1, -1) if at.dim() == 2 else at
        empty = (at < 0).expand(keys.k.shape[:3])[..., None]
        return [(x, empty) for x in (keys.k, keys.v)]
    return []


@pytest.mark.parametrize("form", ["padded", "slots", "slots_with_holes", "paged", "paged_heads"])
@pytest.mark.parametrize("rule", ["all", "causal", "window", "sink", "cap"])
@pytest.mark.parametrize("n", [1, 3])
def test_what_nobody_reads_may_hold_anything(form, rule, n, seed):
    keys = FORMS[form](23)
    call = Call(torch.randn(B, H, n, D), keys, RULES[rule])
    before = {name: run(call, ("lse",), name) for name in readers(call)}
    spoilt = 0
    for x, where in unread(keys):
        x.masked_fill_(where, torch.nan)
        spoilt += int(where.sum())
    assert spoilt
    for name, want in before.items():
        got = run(call, ("lse",), name)
        torch.testing.assert_close(got.out, want.out, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.lse, want.lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["all", "window"])
def test_autocast_ends_at_the_door(form, rule, seed):
    call = Call(torch.randn(B, H, 1, D), FORMS[form](23), RULES[rule])
    for name in readers(call):
        want = run(call, ("lse", "weights"), name)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(call, ("lse", "weights"), name)
        for x, y in ((got.out, want.out), (got.lse, want.lse), (got.weights, want.weights)):
            assert x.dtype == y.dtype
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_every_executor_is_asked_about_some_form(seed):
    """What reads a form of its own runs in these laws where the device allows it."""
    own = {name for name in EXECUTORS if set(EXECUTORS[name].reads) - {"dense"}}
    assert own >= {"decode", "selected", "paged", "packed", "ragged"}
