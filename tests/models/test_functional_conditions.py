"""Attached modules in threads, compiled, under autocast and recomputed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from regard.models import Edit, Null, Stage, UnsupportedModelError, attach
from regard.models.forward import current_forward
from tests.models.functional_models import KINDS, Gpt, Note, Plain, state_of, tokens


def test_two_threads_do_not_meet(seed: int) -> None:
    """One model is attached in its thread, another runs in another: each gives what is its own."""
    mine, other, x = Plain(), Plain(), tokens()
    plain, plain_other = mine(x), other(x)
    with attach(mine, [Edit("out", lambda o: 0 * o)]):
        silent = mine(x)
    assert not torch.allclose(silent, plain)
    wrong: list[str] = []
    begin = threading.Barrier(2)

    def attached() -> None:
        begin.wait()
        for _ in range(50):
            with attach(mine, [Edit("out", lambda o: 0 * o)]):
                if not torch.equal(mine(x), silent):
                    wrong.append("the attached model was not silent")
            if not torch.equal(mine(x), plain):
                wrong.append("the detached model was not itself")

    def alone() -> None:
        begin.wait()
        for _ in range(400):
            if not torch.equal(other(x), plain_other):
                wrong.append("the other model was touched")

    threads = [threading.Thread(target=f) for f in (attached, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_attached_model_serves_two_threads(seed: int) -> None:
    model, x = Plain(), tokens()
    note = Note()
    with attach(model, [note, Edit("out", lambda o: 2 * o)]):
        expected = model(x)
        found: list[Tensor] = []
        threads = [
            threading.Thread(target=lambda: found.extend(model(x) for _ in range(50)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 100
    assert all(torch.equal(y, expected) for y in found)
    assert len(note.sites) == 101
    assert {s.index for s in note.sites} == {0}


def test_detaching_while_a_forward_runs_leaves_nothing_behind() -> None:
    model, held = Gpt(), []

    class Leaves(Stage):
        def before(self, call: Any) -> Any:
            held[0].detach()
            return call

    before = state_of(model)
    ids = torch.arange(6)[None]
    plain = model(ids)
    held.append(attach(model, [Leaves()]))
    torch.testing.assert_close(model(ids), plain, atol=1e-5, rtol=1e-5)
    assert state_of(model) == before
    assert torch.overrides._get_current_function_mode() is None
    assert current_forward() is None


def test_a_model_compiled_within_has_its_stages_and_loses_them() -> None:
    model, x = Gpt(1), torch.arange(6)[None]
    double = Edit("out", lambda o: 2 * o)
    with torch.no_grad():
        plain = model(x)
        with attach(model, [double]):
            expected = model(x)
            compiled = torch.compile(model, backend="eager")
            torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x), plain)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
def test_a_model_compiled_before_is_refused(how: str) -> None:
    model: Any = Gpt(1)
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    else:
        (model if how == "in place" else model.blocks[0]["attn"]).compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled already"):
        attach(model, [Null()])
    attach(model).detach()  # with no stage there is nothing to lose


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_followed(kind: str, seed: int) -> None:
    model, x = Plain(kind), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with attach(model, [Null()]):
            found = model(x)
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_backward_meets_the_stages(reentrant: bool, seed: int) -> None:
    model, x = Plain(), tokens().requires_grad_()
    double = Edit("v", lambda v: 2 * v)
    (plain,) = torch.autograd.grad(model(x).square().sum(), [x])
    with attach(model, [double]):
        (expected,) = torch.autograd.grad(model(x).square().sum(), [x])
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.overrides._get_current_function_mode() is None
