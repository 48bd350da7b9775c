"""What a test leaves is found after it, named, and taken away; looking costs next to nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

import regard  # noqa: F401
from regard.core.method import method
from regard.core.registry import Registry
from regard.layers import Layer, register
from regard.models import Null, attach, forward
from tests.leftovers import REGISTRIES, Leftovers, put_back


def leaves_a_name() -> None:
    register("left_by_a_test")(type("Left", (Layer,), {}))


def leaves_a_claim() -> None:
    method("left_by_a_test")(type("Left", (), {}))


def leaves_a_hook() -> None:
    nn.modules.module.register_module_forward_hook(lambda *_: None)


def leaves_a_mode() -> None:
    BaseTorchFunctionMode().__enter__()


def leaves_a_forward() -> None:
    forward._thread.forwards.append(forward.Forward(0))


def leaves_an_attachment() -> list[Any]:
    return [attach(nn.Sequential(nn.MultiheadAttention(4, 1)), [Null()], check=False)]


def leaves_gradients_off() -> None:
    torch.set_grad_enabled(False)


@pytest.mark.parametrize(
    ("leave", "named"),
    [
        (leaves_a_name, "layers: left_by_a_test"),
        (leaves_a_claim, "claim of left_by_a_test"),
        (leaves_a_hook, "hooks on every module"),
        (leaves_a_mode, "modes"),
        (leaves_a_forward, "forwards of the thread"),
        (leaves_an_attachment, "attachments"),
        (leaves_gradients_off, "gradients"),
    ],
)
def test_what_is_left_is_named_and_taken_away(leave: Callable[[], Any], named: str) -> None:
    before = Leftovers()
    kept = leave()
    assert named in ", ".join(before.found())
    for one in kept or []:
        one.detach()
    assert before.found() == []


def test_what_an_import_brings_is_not_left() -> None:
    before = Leftovers()
    before.sizes["layers"] = 0  # as if no layer had been imported when the test began
    assert before.found() == []


def test_what_is_registered_within_is_put_back() -> None:
    before = Leftovers()
    with put_back():
        leaves_a_name()
        leaves_a_claim()
    assert before.found() == []


def test_every_registry_is_looked_at() -> None:
    names = {x.split(".")[1] for x in REGISTRIES}
    for package in sorted(names):
        __import__(f"regard.{package}.registry")
    found = {
        x.package.split(".")[1]
        for x in gc.get_objects()
        if type(x) is Registry and x.package != "regard.core"
    }
    assert found == names


def test_looking_takes_microseconds() -> None:
    def once() -> float:
        start = time.perf_counter()
        assert Leftovers().found() == []
        return time.perf_counter() - start

    assert min(once() for _ in range(50)) < 1e-3
